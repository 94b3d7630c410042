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

_SCALE = ":scale"
"""Ends the name of the scales that belong to an array of bytes."""

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
            size, 3 significant digits); by default each keeps its own. ``"int8"``: matrices as
            bytes (a quarter of the size) with a scale for each column, the rest as bfloat16.

    Raises:
        ValueError: a key holds "/", or the config is not JSON.
    """
    from safetensors.numpy import save

    try:
        metadata = {"config": json.dumps(config, sort_keys=True)}
    except TypeError as e:
        raise ValueError(f"the config cannot be written as JSON: {e}") from None
    flat = {k: np.asarray(v) for k, v in _flatten(params).items()}
    if dtype == "int8":
        flat = {name: x for k, v in flat.items() for name, x in _as_bytes(k, v).items()}
    elif dtype is not None:
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


def _as_bytes(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """``values = bytes * scale``; the scale is the largest of a column (axis -2) over 127."""
    if values.dtype.kind not in "fV":
        return {name: values}
    if values.ndim < 2:
        return {name: values.astype(ml_dtypes.bfloat16)}
    wide = values.astype(np.float32)
    scale = np.abs(wide).max(-2, keepdims=True) / np.float32(127)
    rounded = np.rint(wide / np.where(scale > 0, scale, 1)).astype(np.int8)
    return {name: rounded, name + _SCALE: scale}


def load_safetensors(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Read ``(params, config)``; storage of less precision comes back as float32 NumPy arrays.

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
    scales = {k: flat.pop(k) for k in list(flat) if k.endswith(_SCALE)}
    for k, scale in scales.items():
        flat[k.removesuffix(_SCALE)] = flat[k.removesuffix(_SCALE)] * scale
    flat = {k: v.astype(np.float32) if v.dtype in _HALF else v for k, v in flat.items()}
    return _unflatten(flat), json.loads(metadata["config"])
