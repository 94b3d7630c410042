"""The sections every recipe fills in; see the recipes for what the numbers mean.

A recipe is ``get_config(arg)``; ``--config=configs/cpcp.py:smoke`` passes ``arg="smoke"``, which
turns any recipe into a run of a few seconds on built-in textbook crystals.
"""

from ml_collections import ConfigDict

# Laboratory and synchrotron scans of ordinary quality over many ranges; half of the patterns stay
# clean, 5 to 90 degrees with Cu K-alpha. Angles are those of Cu K-alpha at the same 1/d.
LABORATORY = {
    "radiations": ((1.54184, 0.00249, 3.0), (1.5406, 0.0, 3.0), (0.71073, 0.00605, 0.5)),
    "start": (4.0, 18.0),
    "end": (60.0, 110.0),
    "num_bins": 2126,  # 0.04 degree over 5..90
    "fwhm": (0.08, 0.3),
    "lorentzian": (0.1, 1.0),
    "zero_shift": (-0.03, 0.03),
    "displacement": (-0.03, 0.03),
    "b_factor": (0.0, 1.0),
    "texture": (0.0, 0.3),
    "impurity": (0.01, 0.1),
    "num_impurity": 3,
    "impurity_fraction": 0.15,
    "noise": (0.004, 0.03),
    "background": (0.01, 0.2),
    "residue": (0.0, 0.02),
    "clean_fraction": 0.5,
}


def variants(arg: str, recipe: str, *known: str) -> set[str]:
    """Split the variants asked for ("cpu,transformer"), all of which must be known."""
    asked = {word for word in arg.split(",") if word}
    if asked - set(known):
        raise ValueError(
            f"unknown variant {arg!r} of configs/{recipe}.py; known, alone or joined by commas: "
            f"{', '.join(known)}"
        )
    return asked


def base(task: str) -> ConfigDict:
    """Return the sections shared by all tasks, with inorganic cells of at most 20 atoms in mind."""
    return ConfigDict(
        {
            "task": task,
            "init_from": "",  # weights or run folder whose equally named parameters are taken over
            "data": {
                "train": "data/mp20_train.npz",  # written by `python -m launch.prepare`
                "eval": "data/mp20_val.npz",
                "num_eval": 1024,
                "num_atoms_buckets": (4, 8, 12, 16, 20),
                "budget_pairs": 6400,  # atom pairs a step: the batch of a bucket is budget / n^2
                "max_batch": 64,
                "min_batch": 8,
                "mixed": False,  # True: every batch holds crystals of all buckets
            },
            "pattern": {
                "source": "lines",  # simulated in the step; "own": the peaks the data set came with
                "form": "inv_d",  # "grid": the paper's index on the 0.02 degree grid from 3 degrees
                "num_peaks": 64,
                "effects": LABORATORY,
            },
            "train": {
                "seed": 0,
                "num_epochs": 100,
                "num_steps": 0,  # or so many steps,
                "num_seconds": 0.0,  # or so long by the clock: all but one are 0
                "log_every": 50,
                "eval_every": 2000,
                "checkpoint_every_steps": 2000,
                "checkpoint_every_seconds": 300,
                "checkpoint_format": "orbax",
                "clip": 5.0,
                "ema_decay": 0.999,
                "freeze": (),
                "optim": {
                    "name": "adamw",
                    "learning_rate": 1e-3,
                    "betas": (0.9, 0.99),
                    "eps": 1e-8,
                    "weight_decay": 0.0,
                    "schedule": "cosine",
                    "warmup_epochs": 0.5,
                    "warmup_steps": 0,
                },
            },
        }
    )


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrink a recipe to a run of seconds on the textbook crystals: every code path, no skill."""
    config.data.train = config.data.eval = "textbook"
    config.data.update(
        {"num_eval": 12, "num_atoms_buckets": (4, 6), "budget_pairs": 200, "max_batch": 8}
    )
    config.pattern.num_peaks = 24
    config.model.encoder.update({"width": 32, "ffn": 64, "heads": 4, "layers": 1})
    config.model.network.update({"width": 32, "layers": 2, "num_freqs": 8})
    config.train.update(
        {"num_epochs": 2, "log_every": 1, "eval_every": 2, "checkpoint_every_steps": 2}
    )
    return config


def accelerator(config: ConfigDict, num_seconds: float) -> ConfigDict:
    """Fit a recipe to one accelerator and minutes: half-precision products, length by the clock."""
    config.model.encoder.dtype = config.model.network.dtype = "bfloat16"
    config.train.update(
        {
            "num_epochs": 0,
            "num_seconds": num_seconds,
            "log_every": 100,
            "eval_every": 0,
            "checkpoint_every_steps": 0,
            "checkpoint_format": "npz",
            "clip": 1.0,
        }
    )
    config.train.optim.update(
        {"learning_rate": 6e-4, "weight_decay": 0.01, "warmup_epochs": 0.0, "warmup_steps": 400}
    )
    return config


ACCELERATOR_ENCODER = {"width": 256, "ffn": 1024, "heads": 8, "layers": 4, "dropout": 0.0}

CPU_ENCODER = {"width": 128, "ffn": 256, "heads": 8, "layers": 2, "dropout": 0.0}

FROZEN_ENCODER = ("params/pxrd_encoder",)
"""For ``config.train.freeze``: the encoder stays as ``init_from`` brought it."""
