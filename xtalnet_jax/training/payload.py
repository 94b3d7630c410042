"""A flat dict of arrays on disk, in two formats behind one pair of functions.

``npz`` needs numpy only and can be cut into files of bounded size; ``orbax`` is the common format
of the JAX ecosystem and is imported when first used. Neither knows about steps or retention; see
:mod:`xtalnet_jax.training.checkpoint`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["Arrays", "nest", "read_arrays", "write_arrays"]

Arrays = dict[str, np.ndarray]  # path components joined by "/" -> array

_ENTRY_BYTES = 1024  # upper bound of what zip and npy headers add per array


def write_arrays(directory: Path, arrays: Arrays, format: str, part_bytes: int = 0) -> None:
    """Write ``arrays`` into the existing ``directory``; files are on disk when it returns.

    Args:
        directory: where.
        arrays: what; the paths form a tree.
        format: "npz" or "orbax".
        part_bytes: npz only, the largest size of a file; 0 is one file however large.
    """
    if format == "orbax":
        with _orbax() as checkpointer:
            checkpointer.save(directory.resolve() / "state", nest(arrays))
        return
    table: dict[str, dict] = {}
    parts: list[Arrays] = [{}]
    room = budget = (part_bytes - 4 * _ENTRY_BYTES) if part_bytes else math.inf
    if budget < 16 * _ENTRY_BYTES:
        raise ValueError(f"parts of {part_bytes} bytes are too small, expected at least 32 KiB")
    for path, array in arrays.items():
        array = np.asarray(array)
        table[path] = {"dtype": array.dtype.name, "shape": list(array.shape), "pieces": []}
        flat = np.ascontiguousarray(array).reshape(-1)
        if array.dtype.kind == "V":  # bfloat16 and the like, which npy does not know
            flat = flat.view(f"u{array.dtype.itemsize}")
        start = 0
        while start < flat.size or not table[path]["pieces"]:
            if room < _ENTRY_BYTES + flat.itemsize:
                parts.append({})
                room = budget
            fits = flat.size if room == math.inf else int((room - _ENTRY_BYTES) // flat.itemsize)
            piece = flat[start : start + fits]
            name = f"a{len(parts[-1])}"
            parts[-1][name] = piece
            table[path]["pieces"].append([len(parts) - 1, name])
            room -= piece.nbytes + _ENTRY_BYTES
            start += fits
    for index, part in enumerate(parts):
        write_synced(_part(directory, index), lambda file, part=part: np.savez(file, **part))
    text = json.dumps(table).encode()
    write_synced(directory / "arrays.json", lambda file: file.write(text))


def read_arrays(directory: Path) -> Arrays:
    """The arrays in ``directory``, whichever format it holds.

    Any exception means that the files are damaged; npz verifies a checksum of every array.
    """
    if (directory / "state").is_dir():
        with _orbax() as checkpointer:
            return dict(_flatten(checkpointer.restore(directory.resolve() / "state"), ""))
    table = json.loads((directory / "arrays.json").read_text())
    num_parts = 1 + max(index for entry in table.values() for index, _ in entry["pieces"])
    parts = []
    for index in range(num_parts):
        with np.load(_part(directory, index), allow_pickle=False) as part:
            parts.append({name: part[name] for name in part.files})
    arrays = {}
    for path, entry in table.items():
        pieces = [parts[index].pop(name) for index, name in entry["pieces"]]
        flat = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        dtype = jnp.dtype(entry["dtype"])
        flat = flat if flat.dtype == dtype else flat.view(dtype)
        arrays[path] = flat.reshape(entry["shape"])
    return arrays


def write_synced(path: Path, write: Callable[[Any], Any]) -> None:
    """Create ``path`` by ``write(file)`` and flush it to the disk."""
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def nest(arrays: Arrays) -> dict:
    """``{"a/b": x} -> {"a": {"b": x}}``."""
    tree: dict = {}
    for path, array in arrays.items():
        *heads, last = path.split("/")
        node = tree
        for head in heads:
            node = node.setdefault(head, {})
        node[last] = array
    return tree


def _flatten(tree: dict, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, np.asarray(value)


def _part(directory: Path, index: int) -> Path:
    return directory / f"part-{index:04d}.npz"


def _orbax() -> Any:
    """A synchronous writer of numpy trees that runs on the main process alone.

    Numpy leaves, because arrays of jax can only be restored on the devices they were saved from.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ValueError(
            "checkpoints of format 'orbax' need orbax-checkpoint; install it, or set "
            "checkpoint_format='npz'"
        ) from error
    import jax

    options = None
    if jax.process_count() > 1:
        main = jax.process_index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=main, active_processes={main}, barrier_sync_key_prefix=f"only{main}"
        )
        return ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
            multiprocessing_options=options,
        )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
