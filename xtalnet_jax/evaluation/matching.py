"""Does a predicted crystal match the true one, and how far apart are they (pymatgen's matcher).

One pair is `match_rmse`; many pairs, in parallel, with a time limit and a record file, are
`match_many` (its processes live in `matching_pool`). What the numbers mean for ranked candidates
is `generation`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal


class Tolerance(NamedTuple):
    """Tolerances of ``pymatgen.analysis.structure_matcher.StructureMatcher``."""

    stol: float  # site tolerance, in units of (V/N)^(1/3)
    angle_tol: float  # degrees
    ltol: float  # relative tolerance of lengths


PAPER = Tolerance(stol=0.7, angle_tol=5.0, ltol=0.2)
"""As stated in the paper."""
PAPER_SCRIPT = Tolerance(stol=0.9, angle_tol=10.0, ltol=0.3)
"""Default of the public evaluation script."""
FIELD = Tolerance(stol=0.5, angle_tol=10.0, ltol=0.3)
"""Common to published structure prediction on MP-20, MPTS-52, Perov-5 and Carbon-24."""
STRICT = Tolerance(stol=0.3, angle_tol=5.0, ltol=0.2)
"""pymatgen's own default."""
TOLERANCES: Mapping[str, Tolerance] = {
    "paper": PAPER,
    "paper_script": PAPER_SCRIPT,
    "field": FIELD,
    "strict": STRICT,
}

MatchFn = Callable[[Crystal, Crystal, Tolerance], float | None]


class MatchPair(NamedTuple):
    """One candidate for one test item."""

    item: str
    candidate: int
    predicted: Crystal
    truth: Crystal


class MatchRecord(NamedTuple):
    """What matching one pair gave; ``rmse`` has one entry per tolerance, None = no match.

    ``status`` is ``ok``, ``timeout`` or ``error: <what>``; after the latter two, tolerances that
    were not reached are None, i.e. they count against us.
    """

    item: str
    candidate: int
    rmse: Mapping[str, float | None]
    status: str
    seconds: float


def match_rmse(predicted: Crystal, truth: Crystal, tolerance: Tolerance) -> float | None:
    """RMS displacement of the best match in units of (V/N)^(1/3), or None if there is no match.

    Both structures are reduced to primitive Niggli cells and scaled to one volume first, so cell
    choice, atom order, origin and volume do not count (Ong et al., Computational Materials Science
    68, 314, 2013; ``StructureMatcher.get_rms_dist``).

    A prediction that is not a crystal (NaN, no atoms, cell without volume) matches nothing.

    Raises:
        ValueError: ``truth`` is not a crystal.
    """
    if not _is_crystal(truth):
        raise ValueError(
            "the true structure has no atoms, a value that is not finite, or a cell without "
            "volume; expected a valid crystal, so check the test set"
        )
    if not _is_crystal(predicted) or not same_reduced_composition(predicted, truth):
        return None
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(
        ltol=tolerance.ltol, stol=tolerance.stol, angle_tol=tolerance.angle_tol
    )
    match = matcher.get_rms_dist(predicted.to_structure(), truth.to_structure())
    return None if match is None else float(match[0])


def same_reduced_composition(a: Crystal, b: Crystal) -> bool:
    """Whether the reduced formulas are equal; if not, no tolerance lets the crystals match."""
    return _reduced_composition(a) == _reduced_composition(b)


def _reduced_composition(crystal: Crystal) -> dict[int, int]:
    numbers, counts = np.unique(np.asarray(crystal.atomic_numbers), return_counts=True)
    divisor = np.gcd.reduce(counts)
    return {int(z): int(n) for z, n in zip(numbers, counts // divisor)}


def _is_crystal(crystal: Crystal) -> bool:
    lattice = np.asarray(crystal.lattice, np.float64)
    finite = np.isfinite(lattice).all() and np.isfinite(crystal.frac_coords).all()
    return bool(finite and len(crystal.atomic_numbers) and abs(np.linalg.det(lattice)) > 1e-6)


def match_many(
    pairs: Iterable[MatchPair],
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
    workers: int = 1,
    timeout_s: float | int | None = None,
    record_path: str | Path | None = None,
    retry_failed: bool = False,
    progress: Callable[[int, int], None] | None = None,
    match_fn: MatchFn = match_rmse,
) -> list[MatchRecord]:
    """Match every pair at every tolerance; records come back in the order of ``pairs``.

    Pairs of one item should be neighbours: the matcher caches the reduced cell of the truth.

    Args:
        pairs: pairs with distinct (item, candidate).
        tolerances: name -> tolerance; a record has one RMSE for each.
        workers: processes. 1 without a time limit stays in this process; otherwise processes are
            spawned, so a script needs ``if __name__ == "__main__":``.
        timeout_s: seconds allowed for one pair (all tolerances together). A pair that takes longer
            is killed with its process and recorded as ``timeout``.
        record_path: JSONL file; finished pairs found there are skipped, new ones appended.
        retry_failed: match pairs again that the file has as timeout or error.
        progress: called as ``progress(num_done, num_pairs)``.
        match_fn: what matches one pair; must be picklable where processes are spawned.

    Raises:
        ValueError: a key occurs twice, a limit is not positive, or the record file is of other
            structures or tolerances.
        RuntimeError: worker processes cannot start.
    """
    pairs = list(pairs)
    if workers < 1 or (timeout_s is not None and timeout_s <= 0):
        raise ValueError(f"workers={workers}, timeout_s={timeout_s}; expected both to be positive")
    if not tolerances:
        raise ValueError("no tolerance given; expected at least one, e.g. TOLERANCES")
    keys = [(pair.item, int(pair.candidate)) for pair in pairs]
    if len(set(keys)) != len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise ValueError(f"the pair {twice} occurs twice; give each candidate its own number")
    digests = [_digest(pair, tolerances) for pair in pairs]
    done = _load_done(record_path, dict(zip(keys, digests)), retry_failed) if record_path else {}
    records = [done.get(key) for key in keys]
    missing = [i for i, record in enumerate(records) if record is None]
    num_done = len(pairs) - len(missing)

    todo = [pairs[i] for i in missing]
    if workers == 1 and timeout_s is None:
        outcomes = _match_here(todo, tolerances, match_fn)
    else:
        from xtalnet_jax.evaluation.matching_pool import run_pool

        outcomes = run_pool(todo, tolerances, min(workers, len(todo)), timeout_s, match_fn)
    with _appender(record_path) as write:
        for k, record in outcomes:
            records[missing[k]] = record
            write(json.dumps({**record._asdict(), "digest": digests[missing[k]]}))
            num_done += 1
            if progress is not None:
                progress(num_done, len(pairs))
    return [record for record in records if record is not None]


def match_pair(
    pair: MatchPair, tolerances: Mapping[str, Tolerance], match_fn: MatchFn
) -> Iterator[tuple[str, float | None, str]]:
    """Yield (tolerance name, rmse, status) as each tolerance is finished."""
    for name, tolerance in tolerances.items():
        try:
            yield name, match_fn(pair.predicted, pair.truth, tolerance), "ok"
        except Exception as error:  # one strange candidate must not end a night's evaluation
            yield name, None, f"error: {type(error).__name__}: {error}"


def _match_here(
    pairs: Sequence[MatchPair], tolerances: Mapping[str, Tolerance], match_fn: MatchFn
) -> Iterator[tuple[int, MatchRecord]]:
    for k, pair in enumerate(pairs):
        start = time.monotonic()
        results = list(match_pair(pair, tolerances, match_fn))
        rmse = {name: value for name, value, _ in results}
        status = next((status for _, _, status in results if status != "ok"), "ok")
        seconds = round(time.monotonic() - start, 3)
        yield k, MatchRecord(pair.item, int(pair.candidate), rmse, status, seconds)


# --- the record file ---------------------------------------------------------------------------


def load_match_records(path: str | Path) -> list[MatchRecord]:
    """Read a record file of `match_many`; a later line of a pair replaces an earlier one.

    Raises:
        ValueError: a line is not a record.
    """
    return [record for record, _ in _read_lines(Path(path)).values()]


def _read_lines(path: Path) -> dict[tuple[str, int], tuple[MatchRecord, str]]:
    found: dict[tuple[str, int], tuple[MatchRecord, str]] = {}
    text = path.read_text(encoding="utf-8")
    # What follows the last newline was cut off while being written: not a finished pair.
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
            digest = row.pop("digest")
            record = MatchRecord(**row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number} is not a match record ({error}); expected a file written "
                "by match_many, so choose another path"
            ) from None
        found[record.item, record.candidate] = (record, digest)
    return found


def _load_done(
    path: str | Path, digests: Mapping[tuple[str, int], str], retry_failed: bool
) -> dict[tuple[str, int], MatchRecord]:
    path = Path(path)
    done: dict[tuple[str, int], MatchRecord] = {}
    if not path.exists():
        return done
    for key, (record, digest) in _read_lines(path).items():
        if key in digests and digest != digests[key]:
            raise ValueError(
                f"{path} holds {key} for other structures or tolerances; expected the same as now, "
                "so choose another record file"
            )
        if record.status == "ok" or not retry_failed:
            done[key] = record
    return done


def _digest(pair: MatchPair, tolerances: Mapping[str, Tolerance]) -> str:
    """Fingerprint of what was compared, so that a stale record is not taken for a new one."""
    digest = hashlib.sha256(json.dumps({k: list(t) for k, t in tolerances.items()}).encode())
    for crystal in (pair.predicted, pair.truth):
        digest.update(np.asarray(crystal.atomic_numbers, np.int64).tobytes())
        digest.update(np.asarray(crystal.frac_coords, np.float64).tobytes())
        digest.update(np.asarray(crystal.lattice, np.float64).tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _appender(path: str | Path | None) -> Iterator[Callable[[str], None]]:
    """Give a ``write(line)`` whose lines reach the file at once, or nowhere without a path."""
    if path is None:
        yield lambda line: None
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # drop a line that was cut off while being written
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    with path.open("a", encoding="utf-8") as file:

        def write(line: str) -> None:
            file.write(line + "\n")
            file.flush()

        yield write
