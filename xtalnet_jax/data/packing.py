"""From any source to a `PackedSet`: reduce, check, simulate; in chunks, resumable, parallel."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data import packed as packed_sets
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.data.sources import OwnPeaks, Record, Source
from xtalnet_jax.data.standard import check_crystal
from xtalnet_jax.pxrd.pattern import inv_d_from_two_theta

_log = logging.getLogger(__name__)

CHUNK = 1024  # records; the unit of progress, of resuming and of parallel work


class PackOptions(NamedTuple):
    """What determines the content of a packed set, beside its source."""

    num_lines: int = 256  # the strongest are kept
    inv_d_max: float = 1.0  # 1/angstrom
    max_atoms: int | None = None
    niggli: bool = True
    num_peaks: int = 256  # of the source's own patterns; the strongest are kept


class Bad(NamedTuple):
    """A record that was left out."""

    id: str
    reason: str


class Progress(NamedTuple):
    """How far packing is: records seen of all, records left out, rate and time left."""

    num_done: int
    num_records: int
    num_bad: int
    per_second: float
    seconds_left: float

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return (
            f"{self.num_done}/{self.num_records} records, {self.num_bad} left out, "
            f"{self.per_second:.0f}/s, {minutes}:{seconds:02d} left"
        )


def pack(
    source: Source,
    *,
    num_lines: int = 256,
    inv_d_max: float = 1.0,
    max_atoms: int | None = None,
    niggli: bool = True,
    workers: int = 0,
    parts: str | Path | None = None,
    on_bad: Callable[[Bad], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> PackedSet:
    """Reduce, check and simulate every record of ``source``.

    Args:
        source: where the crystals come from.
        num_lines: powder lines kept per crystal, the strongest.
        inv_d_max: lines are simulated up to this 1/d, 1/angstrom.
        max_atoms: larger crystals are left out (and listed).
        niggli: False keeps the cells as they are.
        workers: number of processes; 0 does everything in this one.
        parts: a folder for finished chunks, from which an interrupted run goes on.
        on_bad: receives every record left out; otherwise they are logged.
        on_progress: called after every chunk.

    Raises:
        ValueError: not one record of the source is usable.
    """
    options = PackOptions(num_lines, inv_d_max, max_atoms, niggli)
    chunks = _chunks(source, options, workers, None if parts is None else Path(parts))
    sets, num_done, num_bad, num_new, start = [], 0, 0, 0, time.monotonic()
    for index, chunk_set, bad, is_new in chunks:
        sets.append((index, chunk_set))
        for entry in bad:
            if on_bad is None:
                _log.warning("%s left out: %s", *entry)
            else:
                on_bad(entry)
        size = min(CHUNK, len(source) - index * CHUNK)
        num_done, num_bad, num_new = num_done + size, num_bad + len(bad), num_new + size * is_new
        if on_progress is not None:
            rate = num_new / max(time.monotonic() - start, 1e-9)
            left = (len(source) - num_done) / rate if rate else 0.0
            on_progress(Progress(num_done, len(source), num_bad, rate, left))
    if num_done == num_bad:
        raise ValueError(f"none of the {num_done} records of {source.path} is usable")
    return packed_sets.concatenate([s for _, s in sorted(sets, key=lambda pair: pair[0])])


def pack_file(source: Source, out: str | Path, **options: Any) -> PackedSet:
    """`pack` into the file ``out``; nothing is done where it already holds just that.

    Finished chunks wait in ``out + ".parts"``, so that an interrupted run goes on; records left out
    are listed in ``out + ".bad.json"``.

    Args:
        source: as for `pack`.
        out: the ``.npz`` to write.
        **options: as for `pack`, but ``parts``.
    """
    out = Path(out)
    key = content_key(source, **options)
    if out.is_file() and packed_sets.load_meta(out).get("key") == key:
        return packed_sets.load(out)
    folder = out.with_name(out.name + ".parts")
    parts = folder / key
    if folder.is_dir():  # chunks of other options or of another source are of no use any more
        for stale in folder.iterdir():
            if stale != parts:
                shutil.rmtree(stale)
    bad: list[Bad] = []
    told = options.pop("on_bad", None)

    def note(entry: Bad) -> None:
        bad.append(entry)
        if told is not None:
            told(entry)

    packed = pack(source, parts=parts, on_bad=note, **options)
    meta = {"key": key, "source": source.path.name, "num_bad": len(bad)}
    packed_sets.save(packed, out, meta)
    listing = out.with_name(out.name + ".bad.json")
    listing.unlink(missing_ok=True)
    if bad:
        listing.write_text(json.dumps([entry._asdict() for entry in bad], indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    return packed_sets.load(out)


def content_key(source: Source, **options: Any) -> str:
    """A hash of the source and of the options that determine the content."""
    content = {k: v for k, v in options.items() if k in PackOptions._fields}
    text = json.dumps([source.fingerprint(), PackOptions(**content)._asdict()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pack_records(
    records: Iterable[tuple[str, Callable[[], Record]]], options: PackOptions
) -> tuple[PackedSet, list[Bad]]:
    """Pack named, not yet read records; those that cannot be used are returned with the reason."""
    good: list[Record] = []
    bad: list[Bad] = []
    for name, read in records:
        try:
            record = read()
            crystal = standardise(record.crystal, options.niggli)
            check_crystal(crystal, options.max_atoms)
            peaks = _own_peaks(record)
        except ValueError as error:
            bad.append(Bad(name, str(error)))
        else:
            good.append(record._replace(crystal=crystal, pattern=None, peaks=peaks))
    crystals = [record.crystal for record in good]
    own = [record.peaks for record in good]
    stacked = _stack_peaks(own, options.num_peaks) if any(own) else None
    ids = [record.id for record in good]
    return packed_sets.from_crystals(ids, crystals, _lines(crystals, options), stacked), bad


def _lines(crystals: list[Crystal], options: PackOptions) -> tuple[np.ndarray, np.ndarray]:
    if not crystals:
        return (np.zeros((0, options.num_lines), np.float32),) * 2
    from xtalnet_jax.pxrd.simulate import lines_of

    inv_d, strength = lines_of(crystals, options.inv_d_max, options.num_lines)
    return np.asarray(inv_d), np.asarray(strength)


def _own_peaks(record: Record) -> OwnPeaks | None:
    pattern = record.pattern
    if pattern is None:
        return record.peaks
    from xtalnet_jax.pxrd.peaks import GRID_START, GRID_STEP, reference_peaks

    # The rule of the published model: such patterns are there to reproduce it.
    index, height = reference_peaks(pattern.two_theta, pattern.intensity)
    angles = GRID_START + GRID_STEP * index
    inv_d, measured = (
        np.asarray(inv_d_from_two_theta(x, pattern.wavelength))
        for x in (angles, pattern.two_theta[[0, -1]])
    )
    return OwnPeaks(inv_d, height, measured)


def _stack_peaks(
    own: list[OwnPeaks | None], num_peaks: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    inv_d, strength = np.zeros((2, len(own), num_peaks), np.float32)
    measured = np.zeros((len(own), 2), np.float32)
    for row, peaks in enumerate(own):
        if peaks is None:
            continue
        kept = np.sort(np.argsort(-peaks.strength, kind="stable")[:num_peaks])
        inv_d[row, : len(kept)] = peaks.inv_d[kept]
        strength[row, : len(kept)] = peaks.strength[kept]
        measured[row] = peaks.measured
    return inv_d, strength, measured


def _chunks(
    source: Source, options: PackOptions, workers: int, parts: Path | None
) -> Iterator[tuple[int, PackedSet, list[Bad], bool]]:
    """Yield (index, set, bad, newly made) of every chunk, finished ones first."""
    todo = []
    for index in range(-(-len(source) // CHUNK)):
        part = None if parts is None else _load_part(parts, index)
        if part is None:
            todo.append(index)
        else:
            yield index, *part, False
    if parts is not None:
        parts.mkdir(parents=True, exist_ok=True)
    for index, chunk_set, bad in _made(source, options, workers, todo):
        if parts is not None:
            meta = {"bad": [list(entry) for entry in bad]}
            packed_sets.save(chunk_set, parts / f"{index:06d}.npz", meta, exact=True)
        yield index, chunk_set, bad, True


def _made(
    source: Source, options: PackOptions, workers: int, todo: list[int]
) -> Iterator[tuple[int, PackedSet, list[Bad]]]:
    if workers <= 1 or len(todo) <= 1:
        _share(source, options)
        yield from map(_pack_chunk, todo)
        return
    # Threads of a running JAX do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(todo)), _start_worker, (source, options)) as pool:
        yield from pool.imap_unordered(_pack_chunk, todo)


_shared: tuple[Source, PackOptions]


def _share(source: Source, options: PackOptions) -> None:
    global _shared
    _shared = source, options


def _start_worker(source: Source, options: PackOptions) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # an accelerator serves one process
    _share(source, options)


def _pack_chunk(index: int) -> tuple[int, PackedSet, list[Bad]]:
    source, options = _shared
    rows = range(index * CHUNK, min((index + 1) * CHUNK, len(source)))
    records = ((source.name(i), lambda i=i: source[i]) for i in rows)
    return index, *pack_records(records, options)


def _load_part(parts: Path, index: int) -> tuple[PackedSet, list[Bad]] | None:
    path = parts / f"{index:06d}.npz"
    if not path.is_file():
        return None
    bad = packed_sets.load_meta(path)["bad"]
    return packed_sets.load(path), [Bad(*entry) for entry in bad]
