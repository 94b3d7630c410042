"""The tables of the paper's sections 2.3 and 2.4 for one solver and one data set."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.evaluation import calibration, summary, tables
from xtalnet_jax.evaluation.generation import (
    Attempt,
    Order,
    atom_count_label,
    crystal_system_label,
    element_labels,
    match_at_k,
)
from xtalnet_jax.evaluation.matching import TOLERANCES
from xtalnet_jax.evaluation.retrieval import retrieval_report
from xtalnet_jax.pxrd.augment import Effects, peaks_from_lines
from xtalnet_jax.pxrd.laboratory import laboratory_patterns
from xtalnet_jax.pxrd.pattern import Lines
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve import assess, figures, ranking
from xtalnet_jax.solve.controls import CONTROLS, is_control
from xtalnet_jax.solve.output import writable_folder
from xtalnet_jax.solve.solver import Solver

KS = (1, 3, 5, 10, 20)
RANKED_BY = "strict"
"""Tolerance of the matches that the ranker learns to predict, see `evaluation.matching`."""
BROKEN_DOWN_AT = "field"
"""Tolerance of the table of match rates by kind of crystal."""
FEWEST_OF_A_KIND = 5
"""Kinds of fewer crystals are left out of that table."""


class Options(NamedTuple):
    """What to measure; the fields are the flags of ``launch.evaluate``."""

    num_items: int = 200
    num_candidates: int = 20
    pool: int = 1000
    seed: int = 0
    item_seed: int = 0
    skip: int = 0
    refine: bool = True
    profile: bool = True
    search: bool = True
    controls: tuple[str, ...] = ("shuffled",)  # see `solve.controls`
    fit_ranker: bool = False
    fit_with: tuple[str, ...] = ()  # folders of earlier runs that the ranker is fitted to as well
    workers: int = 2
    patterns: str = "clean"  # or "laboratory"
    two_theta: tuple[float, float] = (5.0, 90.0)  # degrees, of clean patterns
    figures: bool = False


def report(
    solver: Solver, packed: PackedSet, dataset: str, options: Options, out: str | Path
) -> str:
    """Measure, write ``results.json``, ``results.md`` and figures; return the table."""
    out, start = writable_folder(out), time.perf_counter()
    name = Path(dataset).stem
    order = np.random.default_rng(options.item_seed).permutation(packed.num_crystals)
    rows = []
    pool = packed.select(np.sort(order[: options.pool]))
    if options.pool:
        rows += _retrieval(solver, pool, name, options.two_theta, start)
    chosen = packed.select(order[options.skip : options.skip + options.num_items])
    items = make_items(chosen, options)
    if options.patterns != "clean":
        name = f"{name}, {options.patterns} patterns"
    groups = [_assessed(solver, items, "", options, out)]
    for control in options.controls if len(items) > 1 else ():
        said, make = CONTROLS[control]
        wrong = make(items, options.item_seed)
        groups.append(_assessed(solver, wrong, said, options, out / control))
    if options.fit_ranker and options.profile:
        solver = _with_ranker_fitted(solver, groups, options, out)
    for group in groups:
        rows += _generation(solver, group, name, options, start)
    tables.save_results(out / "results.json", rows)
    if options.figures:
        ranker = solver.rankers[_kind(options)] if options.profile else None
        found = figures.Record(items, groups[0].assessed, groups[0].records, ranker)
        among = {str(i): pool.crystal(k) for k, i in enumerate(pool.id)}
        figures.write_figures(out / "figures", solver, found, among, ("paper", RANKED_BY))
    text = "\n\n".join(
        [
            "## Ranked, best method",
            summary.overview(rows),
            *_remarks(solver, groups, options),
            f"## Kinds of crystals, {BROKEN_DOWN_AT} tolerances",
            _breakdowns(solver, groups[0], items, options),
            "## Everything",
            tables.to_markdown(rows),
        ]
    )
    (out / "results.md").write_text(text + "\n", encoding="utf-8")
    return text


def make_items(packed: PackedSet, options: Options) -> list[assess.Item]:
    """Simulate the pattern of every crystal.

    Clean: Cu K-alpha, no noise. Laboratory: see `pxrd.laboratory`.

    Raises:
        ValueError: another kind of patterns.
    """
    if options.patterns not in ("clean", "laboratory"):
        raise ValueError(f"patterns is {options.patterns!r}, expected 'clean' or 'laboratory'")
    crystals = [packed.crystal(k) for k in range(packed.num_crystals)]
    if options.patterns == "clean":
        patterns = simulate_pattern(crystals, two_theta_range=options.two_theta)
    else:
        patterns = laboratory_patterns(crystals, options.item_seed)
    return [assess.Item(str(i), c, p) for i, c, p in zip(packed.id, crystals, patterns)]


def _retrieval(
    solver: Solver, pool: PackedSet, name: str, two_theta: tuple[float, float], start: float
) -> list[tables.ResultRow]:
    first, last = two_theta
    effects = Effects.clean(start=(first, first), end=(last, last))
    lines = Lines(jnp.asarray(pool.lines_inv_d), jnp.asarray(pool.lines_strength))
    peaks = peaks_from_lines(None, lines, effects, solver.num_peaks)
    patterns = np.asarray(solver.embedder.patterns(solver.embedder_params, peaks))
    crystals = solver.embed_crystals([pool.crystal(k) for k in range(pool.num_crystals)])
    found = retrieval_report(patterns @ crystals.T)
    setting = tables.Setting(f"{solver.name}, retrieval", name, "pattern", pool.num_crystals)
    provenance = tables.collect_provenance(time.perf_counter() - start)
    return tables.retrieval_rows(found, setting, provenance)


class _Group(NamedTuple):
    """Candidates of all items under one control ("" for none), and their matches."""

    control: str
    assessed: list[assess.Assessed]
    records: list[Any]
    questions: list[ranking.Question]  # of the items, right at `RANKED_BY`


def _kind(options: Options) -> str:
    return ("refined" if options.refine else "raw") if options.profile else "generated"


def _assessed(
    solver: Solver, items: list[assess.Item], control: str, options: Options, out: Path
) -> _Group:
    kind = _kind(options)
    assessed = assess.assess(
        solver, items, out / f"{kind}.jsonl", options.num_candidates, options.refine,
        options.profile, options.search, options.seed, _progress(control or kind),
    )  # fmt: skip
    records = assess.match(items, assessed, out / f"{kind}_matches.jsonl", options.workers)
    questions = assess.questions(assessed, records, RANKED_BY)
    return _Group(control, assessed, records, questions)


def _with_ranker_fitted(
    solver: Solver, groups: list[_Group], options: Options, out: Path
) -> Solver:
    """Fit to all groups and earlier runs; the controls show what a wrong question is like."""
    kind = _kind(options)
    questions = [(bool(group.control), group.questions) for group in groups]
    for run in options.fit_with:
        questions.append((is_control(run), assess.recorded(run, kind, RANKED_BY)))
    right, wrong = (
        [q for c, found in questions if c is is_wrong for q in found] for is_wrong in (False, True)
    )
    fitted = ranking.fit_ranker(ranking.pooled(right, wrong), inputs=ranking.INPUTS[kind])
    solver = solver._replace(rankers={**solver.rankers, kind: fitted})
    ranking.save_rankers(out / "ranker.json", solver.rankers)
    return solver


def _generation(
    solver: Solver, group: _Group, name: str, options: Options, start: float
) -> list[tables.ResultRow]:
    kind, rows = _kind(options), []
    provenance = tables.collect_provenance(time.perf_counter() - start)
    ks = [k for k in KS if k <= options.num_candidates]
    for tolerance, limits in TOLERANCES.items():
        by_similarity = assess.similarity_attempts(group.assessed, group.records, tolerance)
        stated = f"{tolerance}: stol {limits.stol}, angle {limits.angle_tol}, ltol {limits.ltol}"
        given = "pattern, composition, Z"
        ways: list[tuple[str, list[Attempt], Order]] = [
            (f"{kind}, CPCP similarity", by_similarity, "ranked"),
            (f"{kind}, random order", by_similarity, "random"),
        ]
        if options.profile:
            ranker = solver.rankers[kind]
            by_ranker = assess.ranked_attempts(group.assessed, group.records, ranker, tolerance)
            ways.insert(0, (f"{kind}, calibrated ranker", by_ranker, "ranked"))
        for how, attempts, order in ways:
            setting = tables.Setting(
                f"{solver.label}, {how}", name, given, options.num_candidates, stated, group.control
            )
            # An item of which no candidate was left has no attempt, but counts.
            found = match_at_k(attempts, ks, order, [a.id for a in group.assessed])
            rows += tables.generation_rows(found, setting, provenance)
    return rows


def _breakdowns(solver: Solver, group: _Group, items: list[assess.Item], options: Options) -> str:
    if options.profile:
        ranker = solver.rankers[_kind(options)]
        attempts = assess.ranked_attempts(group.assessed, group.records, ranker, BROKEN_DOWN_AT)
    else:
        attempts = assess.similarity_attempts(group.assessed, group.records, BROKEN_DOWN_AT)
    labels: dict[str, Mapping[str, Iterable[str]]] = {
        "atoms": {i.id: [atom_count_label(i.truth, (4, 8, 12, 16, 20))] for i in items},
        "crystal system": {i.id: [crystal_system_label(i.truth, 0.1)] for i in items},
        "element": {i.id: element_labels(i.truth) for i in items},
    }
    return summary.breakdowns(attempts, labels, (1, options.num_candidates), FEWEST_OF_A_KIND)


def _remarks(solver: Solver, groups: list[_Group], options: Options) -> list[str]:
    """What stands under the table: time of each stage, and whether the confidence is right."""
    out = []
    for group in groups:
        own = _time_spent(group)
        if options.profile:
            ranker = solver.rankers[_kind(options)]
            own += " " + _calibration(ranker, group.questions)
        out.append(f"{group.control or _kind(options)}: {own}")
        print(out[-1], file=sys.stderr)
    return out


def _time_spent(group: _Group) -> str:
    stages = list(group.assessed[0].seconds)
    seconds = np.array([[a.seconds[s] for s in stages] for a in group.assessed])
    shares = seconds.sum(0) / seconds.sum()
    each = ", ".join(f"{stage} {share:.0%}" for stage, share in zip(stages, shares))
    total = seconds.sum(1)
    return f"median time {np.median(total):.1f} s, mean {total.mean():.1f} s ({each})."


def _calibration(ranker: ranking.Ranker, questions: list[ranking.Question]) -> str:
    """Calibration of all structures, and of the most confident one of each item."""
    sure = [ranker.confidence(q.features) for q in questions]
    first = [(c.max(), q.matched[c.argmax()]) for c, q in zip(sure, questions) if len(c)]
    errors = [
        (what, calibration.expected_calibration_error(c, m), calibration.brier_score(c, m))
        for what, c, m in (
            (
                "all structures",
                np.concatenate(sure),
                np.concatenate([q.matched for q in questions]),
            ),
            ("the first structures", *map(np.array, zip(*first))),
        )
    ]
    return "; ".join(
        f"of {what} the expected calibration error is {error:.3f}, the Brier score {brier:.3f}"
        for what, error, brier in errors
    )


def _progress(name: str) -> Callable[[int, int], None]:
    start = time.perf_counter()

    def say(done: int, total: int) -> None:
        rate = (time.perf_counter() - start) / done
        if done % 10 == 0 or done == total:
            left = rate * (total - done)
            print(f"{name}: {done}/{total}, {rate:.1f} s each, {left:.0f} s left", file=sys.stderr)

    return say
