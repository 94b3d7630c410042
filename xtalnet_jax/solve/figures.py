"""The paper's figures from what an evaluation has on record; ``launch.evaluate --figures``.

Every figure is a PNG with a JSON file of the same name that holds the numbers in it. Which items
are shown is decided by order and by quantiles, not by taste.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.evaluation import calibration
from xtalnet_jax.evaluation.generation import Attempt, atom_count_label, breakdown, match_at_k
from xtalnet_jax.evaluation.matching import TOLERANCES, Tolerance
from xtalnet_jax.evaluation.retrieval import rank_of_truth
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve import assess
from xtalnet_jax.solve.output import writable_folder
from xtalnet_jax.solve.ranking import Ranker
from xtalnet_jax.solve.solver import Solver
from xtalnet_jax.viz import cases, curves, retrieval

NUM_PAIRS = 80
NUM_HITS = 4
NUM_CASES = 5
SIZE_EDGES = (4, 8, 12, 16, 20, 50, 100, 200, 400)


class Record(NamedTuple):
    """What an evaluation has found; ``ranker`` is None where candidates go by similarity."""

    items: Sequence[assess.Item]
    assessed: Sequence[assess.Assessed]
    records: Sequence[Any]  # of `matching.match_many`
    ranker: Ranker | None

    def attempts(self, tolerance: str) -> list[Attempt]:
        """Candidates with the score that orders them, matched at one tolerance."""
        if self.ranker is None:
            return assess.similarity_attempts(self.assessed, self.records, tolerance)
        return assess.ranked_attempts(self.assessed, self.records, self.ranker, tolerance)


def write_figures(
    folder: str | Path,
    solver: Solver,
    record: Record,
    pool: Mapping[str, Crystal] | None = None,
    tolerances: tuple[str, str] = ("paper", "strict"),
) -> list[Path]:
    """Draw all figures that the record has data for.

    Args:
        folder: where the files go.
        solver: embeds patterns and crystals.
        record: items, candidates and matches.
        pool: further crystals to retrieve among, by id.
        tolerances: of the cases and match rates, and of what confidences are about (see
            `report_card.RANKED_BY`).

    Returns:
        The pictures written.

    Raises:
        ValueError: the folder cannot be written.
    """
    folder = writable_folder(folder)
    shown, confident = tolerances
    attempts = record.attempts(shown)
    among = {item.id: item.truth for item in record.items} | dict(pool or {})
    crystals = solver.embed_crystals(list(among.values()))
    pairs = record.items[:NUM_PAIRS]
    similarity = solver.embed_patterns([item.pattern for item in pairs]) @ crystals.T
    made = [
        _similarity(folder, pairs, similarity[:, : len(pairs)]),
        _retrieval(folder, pairs[0], among, similarity[0]),
        _match_rate(folder, record, attempts, shown),
        _by_size(folder, record, attempts, shown),
        _cases(folder, record, attempts, shown),
    ]
    if record.ranker is not None:
        made.append(_reliability(folder, record, record.ranker, confident))
    return [path for path in made if path is not None]


def _similarity(folder: Path, items: Sequence[assess.Item], similarity: np.ndarray) -> Path:
    rank = rank_of_truth(similarity)
    title = f"own crystal most similar for {int((rank == 1).sum())} of {len(items)} patterns"
    data = {"ids": [item.id for item in items], "similarity": similarity, "rank_of_truth": rank}
    return _save(folder / "similarity.png", retrieval.plot_similarity(similarity, title), data)


def _retrieval(
    folder: Path, query: assess.Item, among: Mapping[str, Crystal], similarity: np.ndarray
) -> Path:
    """The first item, searched for among the true crystals of all items and the pool."""
    ids = list(among)
    best = [ids[k] for k in np.argsort(-similarity, kind="stable")[:NUM_HITS]]
    score = dict(zip(ids, similarity.tolist()))
    calculated = _calculated([among[i] for i in best], query)
    hits = [
        retrieval.Hit(_title(i, among[i]), pattern, score[i], i == query.id, among[i])
        for i, pattern in zip(best, calculated)
    ]
    rank = int(rank_of_truth(similarity[None], [ids.index(query.id)])[0])
    name = f"pattern of {_title(query.id, query.truth)}, own crystal ranks {rank} of {len(ids)}"
    data = {
        "query": query.id,
        "rank_of_truth": rank,
        "num_crystals": len(ids),
        "hits": [{"id": i, "similarity": score[i]} for i in best],
    }
    figure = retrieval.plot_retrieval(query.pattern, hits, name, query.truth)
    return _save(folder / "retrieval.png", figure, data)


def _match_rate(folder: Path, record: Record, attempts: list[Attempt], tolerance: str) -> Path:
    most = max((len(found.candidates) for found in record.assessed), default=1)
    ks = [k for k in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50) if k <= max(most, 1)]
    ids = [item.id for item in record.items]
    results = {
        "ranked": match_at_k(attempts, ks, "ranked", ids),
        "random order": match_at_k(attempts, ks, "random", ids),
    }
    title = f"{len(ids)} patterns, {_stated(tolerance)}"
    data = {name: [r._asdict() for r in row] for name, row in results.items()}
    return _save(folder / "match_rate.png", curves.plot_match_rate(results, title), data)


def _by_size(folder: Path, record: Record, attempts: list[Attempt], tolerance: str) -> Path:
    labels = {item.id: [atom_count_label(item.truth, SIZE_EDGES)] for item in record.items}
    found = breakdown(attempts, labels)
    results = {_plain(str(label)): result for label, result in found.items()}
    title = f"first-ranked candidate, {_stated(tolerance)}"
    figure = curves.plot_breakdown(results, "atoms in the primitive cell", title)
    data = {label: result._asdict() for label, result in results.items()}
    return _save(folder / "match_by_size.png", figure, data)


def _plain(label: str) -> str:
    """'005-008' as people write it."""
    return "\N{EN DASH}".join(part.lstrip("0") for part in label.split("-"))


def _cases(folder: Path, record: Record, attempts: list[Attempt], tolerance: str) -> Path | None:
    """First-ranked candidates that match, at equally spaced quantiles of their RMSE."""
    best: dict[str, Attempt] = {}
    for attempt in attempts:
        if attempt.item not in best or attempt.score > best[attempt.item].score:
            best[attempt.item] = attempt
    matched = sorted((a.rmse, a.item, a.candidate) for a in best.values() if a.rmse is not None)
    if not matched:
        return None
    places = np.linspace(0, len(matched) - 1, min(NUM_CASES, len(matched))).round().astype(int)
    items = {item.id: item for item in record.items}
    candidates = {found.id: found.candidates for found in record.assessed}
    drawn, data = [], []
    for rmse, name, number in (matched[i] for i in places):
        item, candidate = items[name], candidates[name][number]
        alike = _in_setting_of(item.truth, candidate, TOLERANCES[tolerance])
        (calculated,) = _calculated([candidate], item)
        title = _title(name, item.truth)
        drawn.append(cases.Case(title, item.truth, alike, rmse, item.pattern, calculated))
        data.append({"id": name, "candidate": number, "rmse": rmse, "crystal": alike._asdict()})
    title = (
        f"first-ranked candidates at quantiles of RMSE; {len(matched)} of {len(items)} match, "
        f"{_stated(tolerance)}"
    )
    return _save(folder / "cases.png", cases.plot_cases(drawn, title), {"cases": data})


def _reliability(folder: Path, record: Record, ranker: Ranker, tolerance: str) -> Path:
    questions = assess.questions(record.assessed, record.records, tolerance)
    confidence = np.concatenate([ranker.confidence(q.features) for q in questions])
    matched = np.concatenate([q.matched for q in questions])
    curve = calibration.reliability_curve(confidence, matched)
    error = calibration.expected_calibration_error(confidence, matched)
    title = f"{len(matched)} structures, {tolerance} match\ncalibration error {error:.3f}"
    data = curve._asdict() | {"calibration_error": error}
    return _save(folder / "reliability.png", curves.plot_reliability(curve, title), data)


# Parts ------------------------------------------------------------------------------------------


def _calculated(crystals: Sequence[Crystal], item: assess.Item) -> Any:
    """Clean patterns over the range of an item's own."""
    x = np.asarray(item.pattern.two_theta)
    return simulate_pattern(list(crystals), item.pattern.wavelength, (float(x[0]), float(x[-1])))


def _in_setting_of(truth: Crystal, candidate: Crystal, tolerance: Tolerance) -> Crystal:
    """The candidate in the axes, origin and order of the truth, where pymatgen finds the way."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(**tolerance._asdict(), primitive_cell=False)
    alike = matcher.get_s2_like_s1(truth.to_structure(), candidate.to_structure())
    return candidate if alike is None else Crystal.from_structure(alike)


def _title(name: str, crystal: Crystal) -> str:
    return f"{crystal.to_structure().composition.reduced_formula} ({name})"


def _stated(tolerance: str) -> str:
    limits = TOLERANCES[tolerance]
    return f"stol {limits.stol:g}, angle {limits.angle_tol:g}, ltol {limits.ltol:g}"


def _save(path: Path, figure: Any, data: Mapping[str, Any]) -> Path:
    # Without the version of matplotlib in it, equal figures are equal files.
    figure.savefig(path, metadata={"Software": None})
    text = json.dumps(data, indent=1, default=_listed)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return path


def _listed(value: Any) -> Any:
    """Arrays and numbers of numpy as JSON has them, of float32 not more digits than it holds."""
    value = np.asarray(value)
    return (value.astype(float).round(7) if value.dtype.kind == "f" else value).tolist()
