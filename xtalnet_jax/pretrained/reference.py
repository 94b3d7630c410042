"""Read checkpoints of the public PyTorch implementation, without PyTorch."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xtalnet_jax.pretrained.convert_torch import reference_config, reference_params
from xtalnet_jax.pretrained.torch_archive import read_torch_archive
from xtalnet_jax.types import Params


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a reference checkpoint by their PyTorch names.

    ``.npz`` files, ``torch.save`` archives of a state_dict and Lightning checkpoints are told
    apart by their content. Half precision becomes float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no checkpoint, damaged, or naming anything but weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    found: Any
    if _is_npz(path):
        with np.load(path, allow_pickle=False) as file:
            found = dict(file)
    else:
        found = read_torch_archive(path)
    if isinstance(found, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(found.get(key), Mapping):
                found = found[key]
    arrays = isinstance(found, Mapping) and {
        k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, np.ndarray)
    }
    if not arrays:
        raise ValueError(f"{path} holds no state_dict of arrays")
    half = {k: v for k, v in arrays.items() if v.dtype.itemsize == 2 and v.dtype.kind in "fV"}
    return {**arrays, **{k: v.astype(np.float32) for k, v in half.items()}}


def _is_npz(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def load_reference_checkpoint(path: str | Path) -> Params:
    """Read a checkpoint of the public PyTorch implementation, without PyTorch.

    Returns:
        Variables ``{"params": ...}`` of `xtalnet_jax.models.cpcp.CPCP` or
        `xtalnet_jax.models.ccsg.CCSG`, whichever the checkpoint holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint of the reference, or one that names code to run.
    """
    return reference_params(read_state_dict(path))


def load_reference(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """`load_reference_checkpoint` together with the `reference_config` that fits it."""
    state = read_state_dict(path)
    return reference_params(state), reference_config(state)
