"""The settings of a training run: every field, its default, and the check against typing errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

__all__ = ["complete_config", "default_config", "total_steps"]

_DEFAULTS: dict[str, Any] = {
    "seed": 0,
    # Length: exactly one of the three is positive.
    "num_epochs": 0,
    "num_steps": 0,
    "num_seconds": 0.0,  # of the clock from the start of this call: the pace says how many steps
    # What happens when, in steps (0: never). The last step is always logged and checkpointed.
    "log_every": 50,
    "eval_every": 0,
    "checkpoint_every_steps": 0,
    "checkpoint_every_seconds": 600.0,
    "checkpoint_keep": 2,  # the latest so many, and besides them the best
    "checkpoint_format": "orbax",  # or "npz": numpy only
    "checkpoint_part_mib": 0.0,  # npz: largest file; 0 is one file
    "best_metric": "loss",  # of the evaluation; smaller is better ("-recall" turns it round)
    # Optimiser.
    "optim": {
        "name": "adam",  # "adam": weight decay is added to the gradient; "adamw": decoupled
        "learning_rate": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "decay_matrices_only": False,  # leave biases and normalisation scales undecayed
        "schedule": "cosine",  # "constant", "cosine" (per step) or "reference" (per epoch)
        "warmup_epochs": 0.0,  # at most one of the two is positive
        "warmup_steps": 0,
        "final_factor": 0.0,  # of the learning rate, at the end of the cosine
    },
    "clip": 0.0,  # largest global norm of the gradient; 0 is off
    "ema_decay": 0.0,  # of the averaged parameters; 0 is off
    "freeze": (),  # path prefixes such as "params/pxrd_encoder"
    # Execution.
    "accumulate": 1,  # micro-batches per step, their gradients averaged
    "steps_per_dispatch": 1,  # steps scanned in one compiled call
    "parallel": "auto",  # "jit", "pmap", or "auto": pmap where there are several devices
    "prefetch": 2,  # batches prepared ahead in a background thread
    "tensorboard": True,  # when a writer is installed
}


def default_config() -> ConfigDict:
    """Every field that training reads, with its default."""
    return ConfigDict(_DEFAULTS)


def complete_config(config: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """``config`` on top of the defaults.

    Raises:
        ValueError: a field is unknown (all unknown ones are listed), of the wrong kind, or
            contradicts another.
    """
    given = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    unknown: list[str] = []
    merged = _merge(_DEFAULTS, given, "", unknown)
    if unknown:
        known = sorted([k for k in _DEFAULTS if k != "optim"])
        known += [f"optim.{k}" for k in sorted(_DEFAULTS["optim"])]
        raise ValueError(
            f"unknown training settings: {', '.join(sorted(unknown))}; known are {', '.join(known)}"
        )
    complete = ConfigDict(merged)
    _check(complete)
    return complete


def total_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Number of steps of the run; 0 where the clock decides."""
    return config.num_steps or config.num_epochs * steps_per_epoch


def _merge(default: dict, given: Mapping, prefix: str, unknown: list[str]) -> dict:
    merged = {}
    unknown += [prefix + key for key in given if key not in default]
    for key, value in default.items():
        new = given.get(key, value)
        if isinstance(value, dict):
            if not isinstance(new, Mapping):
                raise ValueError(f"training setting {prefix + key} must be a group, got {new!r}")
            new = _merge(value, new, f"{prefix}{key}.", unknown)
        elif new is None and isinstance(value, (int, float)):
            new = type(value)()
        elif isinstance(value, (bool, str)):
            if type(new) is not type(value):
                raise ValueError(
                    f"training setting {prefix + key} must be a {type(value).__name__}, got {new!r}"
                )
        elif isinstance(value, (int, float)):
            if isinstance(new, bool) or not isinstance(new, (int, float)):
                raise ValueError(f"training setting {prefix + key} must be a number, got {new!r}")
            if isinstance(value, int) and new != int(new):
                raise ValueError(f"training setting {prefix + key} must be whole, got {new!r}")
            new = type(value)(new)
        elif isinstance(value, tuple):
            if isinstance(new, str):
                raise ValueError(f"training setting {prefix + key} must be a list, got {new!r}")
            new = tuple(new)
        merged[key] = new
    return merged


def _check(config: ConfigDict) -> None:
    def positive(name: str) -> None:
        if config[name] < 1:
            raise ValueError(f"training setting {name} must be at least 1, got {config[name]}")

    for name in ("log_every", "accumulate", "steps_per_dispatch", "prefetch", "checkpoint_keep"):
        positive(name)
    lengths = (config.num_epochs, config.num_steps, config.num_seconds)
    if sum(length > 0 for length in lengths) != 1:
        raise ValueError(
            "give exactly one of num_epochs, num_steps and num_seconds, got "
            f"{lengths[0]}, {lengths[1]} and {lengths[2]}"
        )
    if config.optim.warmup_epochs > 0 and config.optim.warmup_steps > 0:
        raise ValueError("give only one of optim.warmup_epochs and optim.warmup_steps")
    if not 0 <= config.ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {config.ema_decay}")
    choices = {
        "checkpoint_format": (config.checkpoint_format, ("orbax", "npz")),
        "parallel": (config.parallel, ("auto", "jit", "pmap")),
        "optim.name": (config.optim.name, ("adam", "adamw")),
        "optim.schedule": (config.optim.schedule, ("constant", "cosine", "reference")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    for name in ("log_every", "eval_every", "checkpoint_every_steps"):
        if config[name] % config.steps_per_dispatch:
            raise ValueError(
                f"{name}={config[name]} must be a multiple of "
                f"steps_per_dispatch={config.steps_per_dispatch}"
            )
