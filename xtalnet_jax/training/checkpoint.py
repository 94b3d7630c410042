"""Checkpoints: atomic, self-describing, restorable on any number of devices.

``root/00001200/`` holds the arrays (:mod:`.payload`) and ``meta.json`` (step, task, seed, config,
versions, metric). It is written under a temporary name and renamed when complete, so a directory
with a number for a name is whole unless the disk damaged it.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.training.payload import Arrays, nest, read_arrays, write_arrays, write_synced
from xtalnet_jax.training.state import TrainState
from xtalnet_jax.types import Params

__all__ = [
    "NonFiniteError",
    "best_metric",
    "latest_step",
    "load_params",
    "restore",
    "save",
    "versions",
]


class NonFiniteError(FloatingPointError):
    """A loss, a metric or a parameter became NaN or infinite."""


def save(
    root: Path,
    state: TrainState,
    meta: dict[str, Any],
    *,
    format: str = "orbax",
    keep: int = 2,
    metric: float | None = None,
    part_bytes: int = 0,
) -> Path:
    """Write ``state``, then remove what is neither among the latest ``keep`` nor the best.

    Args:
        root: directory of all checkpoints of the run.
        state: on the host, without a device axis.
        meta: anything json can hold, found again in ``meta.json``.
        format: "orbax" or "npz".
        keep: number of latest checkpoints that stay.
        metric: of this state, smaller is better; the best one stays too.
        part_bytes: npz only, largest size of a file, 0 for no limit.

    Returns:
        The directory of the checkpoint.

    Raises:
        NonFiniteError: the state holds NaN or infinity; nothing is written.
    """
    arrays = _flatten(state)
    for path, array in arrays.items():
        if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
            raise NonFiniteError(
                f"{path} is not finite after step {int(state.step)}; no checkpoint is written"
            )
    step = int(state.step)
    final = root / f"{step:08d}"
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = root / f".tmp-{step:08d}-{os.getpid()}"
    temporary.mkdir()
    write_arrays(temporary, arrays, format, part_bytes)
    text = json.dumps({**meta, "step": step, "metric": metric}, indent=1, default=str).encode()
    write_synced(temporary / "meta.json", lambda file: file.write(text))
    if final.exists():
        _remove(final)
    os.replace(temporary, final)
    _sync_directory(root)
    _retain(root, keep)
    return final


def restore(root: Path, target: TrainState) -> tuple[TrainState, dict] | None:
    """The latest readable checkpoint as a host tree shaped like ``target``, and its meta.

    A damaged checkpoint is skipped with a warning in favour of the one before.

    Args:
        root: directory of all checkpoints of the run.
        target: arrays or their shapes (``jax.eval_shape``), of the state to fill.

    Returns:
        None where there is no checkpoint.

    Raises:
        ValueError: the checkpoint belongs to another model or optimiser, or all are damaged.
    """
    steps = _steps(root)
    for step in reversed(steps):
        try:
            arrays, meta = _read(root / f"{step:08d}")
        except Exception as error:  # whatever a damaged file may raise
            warnings.warn(f"checkpoint {step} in {root} is damaged, skipped: {error}", stacklevel=2)
            continue
        return _unflatten(arrays, target, root), meta
    if steps:
        raise ValueError(
            f"all checkpoints in {root} are damaged ({steps}); remove the directory to start anew"
        )
    return None


def latest_step(root: Path) -> int | None:
    """Step of the latest complete checkpoint, None where there is none."""
    return max(_steps(root), default=None)


def best_metric(root: Path) -> float:
    """Smallest metric of the checkpoints that are there, infinity where none has one."""
    return min(_scores(root).values(), default=float("inf"))


def load_params(path: Path, average: bool = True) -> tuple[Params, dict]:
    """Parameters alone, without the model or optimiser that made them.

    Args:
        path: one checkpoint, or a directory of checkpoints, of which the latest readable is taken,
            or the working directory of a run.
        average: take the running average where there is one.

    Returns:
        Nested dicts of numpy arrays, and the meta of the checkpoint.

    Raises:
        ValueError: there is nothing readable.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints"
    found = [path] if (path / "meta.json").exists() else [path / f"{s:08d}" for s in _steps(path)]
    for directory in reversed(found):
        try:
            arrays, meta = _read(directory)
        except Exception as error:
            warnings.warn(f"checkpoint {directory} is damaged, skipped: {error}", stacklevel=2)
            continue
        tree = nest(arrays)
        return (tree.get("ema_params") if average else None) or tree["params"], meta
    raise ValueError(f"no readable checkpoint at {path}")


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {}
    for name in ("xtalnet-jax", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _steps(root: Path) -> list[int]:
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and p.is_dir())


def _read(directory: Path) -> tuple[Arrays, dict]:
    meta = json.loads((directory / "meta.json").read_text())
    return read_arrays(directory), meta


def _flatten(state: TrainState) -> Arrays:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {_key(path): np.asarray(leaf) for path, leaf in leaves}


def _unflatten(arrays: Arrays, target: TrainState, root: Path) -> TrainState:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(target)
    wanted = {_key(path): leaf for path, leaf in leaves}
    missing, surplus = sorted(wanted.keys() - arrays), sorted(arrays.keys() - wanted)
    if missing or surplus:
        raise ValueError(
            f"the checkpoint in {root} belongs to another model or optimiser: it lacks "
            f"{missing[:3] or 'nothing'} and has unexpected {surplus[:3] or 'nothing'}; use "
            "another workdir or the config it was made with"
        )
    for path, leaf in wanted.items():
        if arrays[path].shape != leaf.shape or arrays[path].dtype != leaf.dtype:
            raise ValueError(
                f"the checkpoint in {root} belongs to another model: {path} is "
                f"{arrays[path].dtype}{arrays[path].shape}, expected {leaf.dtype}{leaf.shape}"
            )
    return jax.tree.unflatten(treedef, [arrays[path] for path in wanted])


def _key(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _retain(root: Path, keep: int) -> None:
    scores = _scores(root)
    best = min(scores, key=scores.__getitem__, default=None)
    for step in _steps(root)[:-keep]:
        if step != best:
            _remove(root / f"{step:08d}")


def _scores(root: Path) -> dict[int, float]:
    scores = {}
    for step in _steps(root):
        try:
            score = json.loads((root / f"{step:08d}" / "meta.json").read_text())["metric"]
        except (OSError, ValueError, KeyError):
            continue
        if score is not None and np.isfinite(score):
            scores[step] = score
    return scores


def _remove(directory: Path) -> None:
    """Delete; renamed first, so that a kill in between leaves no half of a checkpoint."""
    doomed = directory.with_name(f".tmp-old-{directory.name}-{os.getpid()}")
    os.replace(directory, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
