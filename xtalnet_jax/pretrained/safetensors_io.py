"""Weights as one safetensors file: flattened ``a/b/c`` keys, the model's config in the header."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from xtalnet_jax.types import Params

_HALF = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(name, str) or "/" in name:
            raise ValueError(f'the key {name!r} must be a string without "/"')
        flat.update(_flatten(value, f"{prefix}/{name}" if prefix else name))
    return flat


def _unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, leaf = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return tree


def save_safetensors(
    path: str | Path, params: Params, config: dict[str, Any], dtype: str | None = None
) -> None:
    """Write nested dicts of arrays; the file appears complete or not at all.

    Args:
        path: Destination, replaced if it exists.
        params: Nested dicts with string keys.
        config: JSON-able description of the model, kept in the header.
        dtype: Storage type of the floating-point arrays, for example ``"bfloat16"`` (half the
            size, 3 significant digits); by default each keeps its own.

    Raises:
        ValueError: a key holds "/", or the config is not JSON.
    """
    from safetensors.numpy import save

    try:
        metadata = {"config": json.dumps(config, sort_keys=True)}
    except TypeError as e:
        raise ValueError(f"the config cannot be written as JSON: {e}") from None
    flat = {k: np.asarray(v) for k, v in _flatten(params).items()}
    if dtype is not None:
        stored = np.dtype(getattr(ml_dtypes, dtype, dtype))
        flat = {k: v.astype(stored) if v.dtype.kind in "fV" else v for k, v in flat.items()}
    data = save({k: np.array(v, order="C") for k, v in flat.items()}, metadata)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_safetensors(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Read ``(params, config)``; half-precision storage comes back as float32 NumPy arrays.

    Raises:
        ValueError: not a safetensors file, or one without our config.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as e:
        raise ValueError(f"{path} is no readable safetensors file: {e}") from None
    if "config" not in metadata:
        raise ValueError(f"{path} has no config in its header: it was not written by this package")
    flat = {k: v.astype(np.float32) if v.dtype in _HALF else v for k, v in flat.items()}
    return _unflatten(flat), json.loads(metadata["config"])
