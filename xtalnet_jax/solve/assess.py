"""Solve the patterns of many known crystals and record every candidate: the raw data of a table.

One line of ``items.jsonl`` per crystal, appended as soon as it is done, so that a run can be
stopped at any moment and goes on where it was. What the lines mean for match rates is
`evaluation`; the two meet in ``launch.evaluate``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import jax
import numpy as np

from xtalnet_jax import compilation
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.evaluation.generation import Attempt, attempts_from_records
from xtalnet_jax.evaluation.matching import MatchPair, load_match_records, match_many
from xtalnet_jax.pxrd.kalpha import single_wavelength
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.solve import ranking
from xtalnet_jax.solve.features import features_of
from xtalnet_jax.solve.solver import Solver


class Item(NamedTuple):
    """One question: which crystal has this composition and this pattern?"""

    id: str
    truth: Crystal
    pattern: Pattern
    composition: np.ndarray | None = None  # [n] atomic numbers claimed, None: those of the truth

    @property
    def numbers(self) -> np.ndarray:
        """[n] atomic numbers that the solver is told."""
        return np.sort(self.truth.atomic_numbers if self.composition is None else self.composition)


class Assessed(NamedTuple):
    """All candidates of one item."""

    id: str
    candidates: list[Crystal]
    features: np.ndarray  # [n, num_features], see `ranking.feature_matrix`
    group: np.ndarray  # [n], equal for candidates that are the same structure
    seconds: dict[str, float]

    @property
    def different(self) -> np.ndarray:
        """Rows of the different structures, see `ranking.different`."""
        return ranking.different(self.features, self.group)

    @property
    def similarity(self) -> np.ndarray:
        """[n] cosine similarity of pattern and crystal embedding."""
        return self.features[:, ranking.FEATURES.index("similarity")]


def assess(
    solver: Solver,
    items: Sequence[Item],
    path: str | Path,
    num_candidates: int = 20,
    refine: bool = True,
    profile: bool = True,
    search: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Assessed]:
    """Draw, fit and describe candidates for every item, composition and Z given.

    Args:
        solver: weights to assess.
        items: what to solve.
        path: record file; items found in it are not solved again.
        num_candidates: drawn per item.
        refine: fit every candidate to the pattern.
        profile: use the pattern for more than the generator's condition; without, candidates are
            single draws described by the similarity.
        search: look for cells, and with ``refine`` for structures in them; without, candidates are
            single draws that are compared with the profile.
        seed: of the generator; an item draws with the key of its id, alone or among others.
        progress: called with the numbers of items done and to do.

    Raises:
        ValueError: the file holds another number of candidates, another kind of run or that of
            other weights, or two items have one id.
    """
    path = Path(path)
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"the id {twice!r} occurs more than once, expected unique ids")
    asked = {
        "num_candidates": num_candidates,
        "refine": refine,
        "profile": profile,
        "search": search,
        "seed": seed,
        "weights": solver.label,
        "inputs": list(ranking.FEATURES),
    }
    done = _read(path, asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for i, item in enumerate(items):
            if item.id not in done:
                key = jax.random.fold_in(jax.random.key(seed), crc32(item.id.encode()))
                found = _assess_one(solver, item, key, asked)
                line = json.dumps({**asked, **_to_json(found)})
                file.write(line + "\n")
                file.flush()
                done[item.id] = _from_json(json.loads(line))  # what a resumed run would read
            if progress:
                progress(i + 1, len(items))
    return [done[item.id] for item in items]


def _assess_one(
    solver: Solver,
    item: Item,
    key: jax.Array,
    asked: dict[str, Any],
) -> Assessed:
    num_candidates, refine, profile = (asked[k] for k in ("num_candidates", "refine", "profile"))
    compilation.make_room()
    start = time.perf_counter()
    pattern = single_wavelength(item.pattern)
    peaks = solver.peaks_of([pattern])
    numbers = item.numbers
    if profile and asked["search"]:
        found = solver.search(key, pattern, peaks, [numbers], num_candidates, anneal=refine)
        proposals = found.crystals
    else:
        proposals = solver.propose(peaks, pattern.wavelength, key, numbers, num_candidates)
    generated = time.perf_counter()
    if profile:
        fit = solver.fit(proposals, pattern, peaks, refine)
    else:
        fit = solver.unfitted(proposals, peaks)
    fitted = time.perf_counter()
    features = features_of(fit, merge=profile)
    seconds = {
        "search": generated - start,
        "refine": fitted - generated,
        "rank": time.perf_counter() - fitted,
    }
    return Assessed(item.id, fit.crystals, features.matrix, features.group, seconds)


def match(
    items: Sequence[Item], assessed: Sequence[Assessed], path: str | Path, workers: int = 2
) -> list[Any]:
    """Match every candidate with the truth at all tolerances; records of `matching.match_many`."""
    pairs = [
        MatchPair(item.id, k, candidate, item.truth)
        for item, found in zip(items, assessed)
        for k, candidate in enumerate(found.candidates)
    ]
    return match_many(pairs, workers=workers, timeout_s=20.0, record_path=path)


def ranked_attempts(
    assessed: Sequence[Assessed], records: Sequence[Any], ranker: ranking.Ranker, tolerance: str
) -> list[Attempt]:
    """Score candidates as the solver ranks them: by confidence, equal structures only once.

    A repetition of a structure goes behind all different ones, as `Solver.rank` drops it.
    """
    scores: dict[tuple[str, int], float] = {}
    for found in assessed:
        scores |= {(found.id, k): -1.0 for k in range(len(found.candidates))}
        rows = found.different
        confidence = ranker.confidence(found.features[rows]).tolist()
        scores |= {(found.id, int(k)): sure for k, sure in zip(rows, confidence)}
    return attempts_from_records(records, scores, tolerance)


def similarity_attempts(
    assessed: Sequence[Assessed], records: Sequence[Any], tolerance: str
) -> list[Attempt]:
    """Score candidates by CPCP similarity alone, the paper's ranking."""
    scores = {(f.id, k): float(s) for f in assessed for k, s in enumerate(f.similarity)}
    return attempts_from_records(records, scores, tolerance)


def questions(
    assessed: Sequence[Assessed], records: Sequence[Any], tolerance: str
) -> list[ranking.Question]:
    """What the ranker sees of each item, and which structures match at a tolerance."""
    found = {(r.item, r.candidate): r.rmse[tolerance] is not None for r in records}
    return [
        ranking.Question(a.features[rows], np.array([found[a.id, int(k)] for k in rows], bool))
        for a in assessed
        for rows in [a.different]
    ]


def recorded(folder: str | Path, kind: str, tolerance: str) -> list[ranking.Question]:
    """What the ranker sees of each item of an earlier run in a folder.

    Raises:
        ValueError: there are none.
    """
    folder = Path(folder)
    found = _read(folder / f"{kind}.jsonl", {})
    records = load_match_records(folder / f"{kind}_matches.jsonl") if found else []
    known = {(r.item, r.candidate) for r in records}
    assessed = [a for a in found.values() if (a.id, 0) in known]
    if not assessed:
        raise ValueError(f"{folder} holds no record of {kind} candidates and their matches")
    return questions(assessed, records, tolerance)


def _to_json(found: Assessed) -> dict[str, Any]:
    return {
        "id": found.id,
        "candidates": [[np.asarray(x).tolist() for x in c] for c in found.candidates],
        "features": np.round(found.features, 6).tolist(),
        "group": found.group.tolist(),
        "seconds": {k: round(v, 3) for k, v in found.seconds.items()},
    }


def _read(path: Path, asked: dict[str, Any]) -> dict[str, Assessed]:
    done: dict[str, Assessed] = {}
    if not path.is_file():
        return done
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # the last line was cut off by an interruption
        path.write_text(whole, encoding="utf-8")
    for line in whole.splitlines():
        entry = json.loads(line)
        other = {k: entry[k] for k in asked if entry.get(k, asked[k]) != asked[k]}
        if other:
            raise ValueError(
                f"{path} was made with {other}, now asked for {asked}: choose another --out"
            )
        done[entry["id"]] = _from_json(entry)
    return done


def _from_json(entry: dict[str, Any]) -> Assessed:
    return Assessed(
        entry["id"],
        [Crystal(*(np.asarray(x) for x in c)) for c in entry["candidates"]],
        np.asarray(entry["features"], float).reshape(-1, len(ranking.FEATURES)),
        np.asarray(entry["group"], int),
        entry["seconds"],
    )
