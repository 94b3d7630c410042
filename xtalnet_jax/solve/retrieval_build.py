"""Build an index of a whole data set into a file, so that it can be interrupted at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.contrastive.index import VectorIndex
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.reduction import primitive, standardise
from xtalnet_jax.data.packing import Bad, Progress
from xtalnet_jax.data.sources import Source
from xtalnet_jax.data.standard import check_crystal
from xtalnet_jax.solve.crystal_table import CrystalTable, concatenate
from xtalnet_jax.solve.retrieval import RetrievalIndex
from xtalnet_jax.solve.solver import Solver

CHUNK = 1024
"""Records; the unit of progress and of resuming."""


class _Part(NamedTuple):
    """A finished chunk: what its file holds."""

    ids: list[str]
    vectors: np.ndarray | None  # [n, d]; None where no record was usable
    table: CrystalTable | None
    bad: list[Bad]


def build_file(
    source: Source,
    out: str | Path,
    solver: Solver,
    on_bad: Callable[[Bad], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RetrievalIndex:
    """Embed the crystals of a source and write the index; nothing is done where it is up to date.

    Finished chunks wait in ``out + ".partial"``, from which the same call goes on after an
    interruption; the folder is removed when the index is written.

    Args:
        source: where the crystals come from.
        out: the ``.npz`` to write.
        solver: whose towers to use.
        on_bad: receives every record left out: unreadable, unsound or too large for the weights.
        on_progress: called after every chunk.

    Raises:
        ValueError: no record is usable, an id occurs twice, or ``out`` does not end in ``.npz``.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise ValueError(f"the path of an index is {str(out)!r}, expected one ending in .npz")
    key = content_key(source, solver)
    if out.is_file():
        entries = _existing(out)
        if entries is not None and entries.meta.get("key") == key:
            return RetrievalIndex(entries, solver)
    folder = out.with_name(out.name + ".partial")
    if folder.is_dir():  # of another source or of other weights
        for stale in folder.iterdir():
            if stale.name != key:
                shutil.rmtree(stale)
    parts: list[_Part] = []
    seen: set[str] = set()
    num_bad, num_new, start = 0, 0, time.monotonic()
    for part, done, size in _chunks(source, solver, folder / key):
        for name in part.ids:  # found out now, not when all are embedded
            if name in seen:
                raise ValueError(f"the id {name!r} occurs more than once, expected unique ids")
            seen.add(name)
        parts.append(part)
        num_bad, num_new = num_bad + len(part.bad), num_new + size
        for entry in part.bad if on_bad is not None else ():
            on_bad(entry)
        if on_progress is not None:
            rate = num_new / max(time.monotonic() - start, 1e-9)
            left = (len(source) - done) / rate if rate else 0.0
            on_progress(Progress(done, len(source), num_bad, rate, left))
    full = [part for part in parts if part.table is not None]
    if not full:
        raise ValueError(f"none of the {len(source)} records of {source.path} is usable")
    index = RetrievalIndex.from_table(
        np.concatenate([part.vectors for part in full]),
        [name for part in full for name in part.ids],
        concatenate([part.table for part in full]),
        solver,
        key=key,
    )
    index.save(out)
    shutil.rmtree(folder)
    return index


def content_key(source: Source, solver: Solver) -> str:
    """A hash of all that determines an index: the source, the weights and their name."""
    parts = [source.fingerprint(), solver.embedder_fingerprint, solver.name, solver.sizes, CHUNK]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _existing(path: Path) -> VectorIndex | None:
    try:
        return VectorIndex.load(path)
    except ValueError:
        return None


def _chunks(source: Source, solver: Solver, folder: Path) -> Iterator[tuple[_Part, int, int]]:
    """Yield (part, records done, records done just now) of every chunk, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(source), CHUNK):
        last = min(first + CHUNK, len(source))
        path = folder / f"{first // CHUNK:06d}.npz"
        if path.is_file():
            yield _load(path), last, 0
        else:
            part = _make(source, range(first, last), solver)
            _save(part, path)
            yield part, last, last - first


def _make(source: Source, rows: range, solver: Solver) -> _Part:
    ids: list[str] = []
    crystals: list[Crystal] = []
    bad: list[Bad] = []
    for i in rows:
        try:
            record = source[i]
            crystal = standardise(primitive(record.crystal))
            check_crystal(crystal, solver.max_atoms)
        except ValueError as error:
            bad.append(Bad(source.name(i), str(error)))
        else:
            ids.append(record.id)
            crystals.append(crystal)
    if not crystals:
        return _Part([], None, None, bad)
    return _Part(ids, solver.embed_crystals(crystals), CrystalTable.from_crystals(crystals), bad)


def _save(part: _Part, path: Path) -> None:
    """Write a part; its file is complete or not there."""
    header = json.dumps({"ids": part.ids, "bad": part.bad})
    arrays: dict[str, Any] = {"header": np.frombuffer(header.encode(), np.uint8)}
    if part.table is not None:
        arrays |= {"vectors": part.vectors, **part.table._asdict()}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)


def _load(path: Path) -> _Part:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays["header"].tobytes())
    bad = [Bad(*entry) for entry in header["bad"]]
    if "vectors" not in arrays:
        return _Part([], None, None, bad)
    return _Part(header["ids"], arrays["vectors"], CrystalTable.from_arrays(arrays), bad)
