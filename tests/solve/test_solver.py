"""The whole way with an untrained solver: nothing is found, but everything is in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.solve import tiny
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.fixtures import load_set, textbook_crystals
from xtalnet_jax.data.packed import from_crystals
from xtalnet_jax.evaluation.tables import load_results
from xtalnet_jax.pretrained.weights import BUNDLED
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.simulate import lines_of, simulate_pattern
from xtalnet_jax.solve import assess, ranking, report_card
from xtalnet_jax.solve.solver import Fit, Solver, features_of, load_solver

pytestmark = pytest.mark.optimised

TEXTBOOK = textbook_crystals()
SMALL = {name: c for name, c in TEXTBOOK.items() if len(c.atomic_numbers) <= 6}
SALT = TEXTBOOK["caesium_chloride"]


@pytest.fixture(scope="module")
def pattern() -> Pattern:
    return simulate_pattern(SALT)


@pytest.fixture(scope="module")
def solution(tiny_solver: Solver, pattern: Pattern) -> Any:
    return tiny_solver.solve(pattern, "CsCl", num_candidates=4, refine=False, z=1)


# Solving ------------------------------------------------------------------------------------------


def test_candidates_are_ranked_and_complete(solution, pattern):
    confidence = [c.confidence for c in solution.candidates]
    assert 1 <= len(confidence) <= 4
    assert confidence == sorted(confidence, reverse=True)
    assert all(0 <= p <= 1 for p in confidence)
    for c in solution.candidates:
        assert sorted(c.crystal.atomic_numbers) == [17, 55]
        assert -1 <= c.similarity <= 1
        np.testing.assert_array_equal(c.calculated.two_theta, pattern.two_theta)
    assert sum(c.votes for c in solution.candidates) == 4
    assert solution.verdict in ("match", "uncertain", "none")
    assert set(solution.seconds) == {"search", "refine", "rank"}
    json.dumps(solution.settings)


def test_equal_seeds_give_equal_solutions(tiny_solver, pattern, solution):
    again = tiny_solver.solve(pattern, "CsCl", num_candidates=4, refine=False, z=1)
    for a, b in zip(solution.candidates, again.candidates, strict=True):
        np.testing.assert_array_equal(a.crystal.frac_coords, b.crystal.frac_coords)
        assert a.confidence == b.confidence
    other = tiny_solver.solve(pattern, "CsCl", num_candidates=4, refine=False, z=1, seed=1)
    assert other.candidates[0].confidence != solution.candidates[0].confidence


def test_hints_are_kept(tiny_solver, pattern):
    hinted = tiny_solver.solve(
        pattern, "CsCl", 4, refine=False, z=1, lattice=(4.123,) * 3 + (90,) * 3, space_group=221
    )
    for c in hinted.candidates:
        np.testing.assert_allclose(c.crystal.lattice, np.eye(3) * 4.123, atol=1e-4)
    found = [c.space_group == "Pm-3m" for c in hinted.candidates]
    assert found == sorted(found, reverse=True)
    if not any(found):
        assert "no candidate has the given space group Pm-3m" in hinted.warnings
    assert hinted.settings["space_group"] == "Pm-3m"


def test_impossible_proposals_are_dropped_and_reported(tiny_solver, pattern):
    sample = tiny_solver.generator.sample

    def broken(*args: Any) -> Any:
        batch = sample(*args)
        return batch._replace(lattice=np.asarray(batch.lattice) * np.nan)

    solver = tiny_solver._replace(generator=tiny_solver.generator._replace(sample=broken))
    solution = solver.solve(pattern, "CsCl", num_candidates=4, refine=False, z=1)
    assert solution.candidates == ()
    assert solution.verdict == "none"
    assert "only 0 candidates had a possible cell" in solution.warnings


@pytest.mark.parametrize(
    ("formula", "options", "message"),
    [
        ("CsCl", {"num_candidates": 0}, "num_candidates is 0"),
        ("Xy2", {}, "unknown element"),
        ("", {}, "no atoms"),
        ("Fm", {}, "no X-ray form factor for atomic number 100"),
        ("Ca2Mg5Si8O24H2", {}, "has 41 atoms, these weights take at most 6"),
        ("CsCl", {"z": 4}, "has 8 atoms"),
        ("CsCl", {"lattice": (4, 4, 4)}, "is no cell"),
        ("CsCl", {"space_group": "Fm-3x"}, "is unknown"),
    ],
)
def test_bad_questions_are_refused_before_any_work(tiny_solver, pattern, formula, options, message):
    idle = tiny_solver._replace(generator=None, embedder=None)
    with pytest.raises(ValueError, match=message):
        idle.solve(pattern, formula, **options)


def test_bad_patterns_are_refused_before_any_work(tiny_solver, pattern):
    idle = tiny_solver._replace(generator=None, embedder=None)
    flat = pattern._replace(intensity=np.ones_like(pattern.intensity))
    with pytest.raises(ValueError, match="flat"):
        idle.solve(flat, "CsCl")
    nan = pattern._replace(intensity=pattern.intensity * np.nan)
    with pytest.raises(ValueError, match="finite"):
        idle.solve(nan, "CsCl")


def test_equal_structures_are_merged_under_the_surest(tiny_solver, pattern):
    worse = SALT._replace(frac_coords=SALT.frac_coords + 0.001)
    other = SALT._replace(frac_coords=np.array([[0, 0, 0], [0.3, 0.2, 0.1]]))
    n = np.zeros(3)
    fit = Fit(
        [worse, SALT, other], np.array([0.2, 0.1, 0.5]), np.full(3, 0.1),
        np.array([0.99, 0.999, 0.5]), n, n, n,
        [tiny.refined(c, pattern) for c in (worse, SALT, other)],
    )  # fmt: skip
    first, second = tiny_solver.rank(fit, "refined")
    assert first.crystal is SALT
    assert (first.votes, second.votes) == (2, 1)
    assert (first.space_group, first.rwp) == ("Pm-3m", 0.03)
    only_last = tiny_solver.rank(fit, "refined", second.space_group)
    assert only_last[0].crystal is other


def test_structures_are_compared_with_what_their_cells_explain(tiny_solver, pattern):
    """The truth, the right cell with atoms too near each other, and a cell that is too large."""
    near = SALT._replace(frac_coords=np.array([[0, 0, 0], [0.3, 0.2, 0.1]]))
    large = SALT._replace(lattice=SALT.lattice * 1.05)
    peaks = tiny_solver.peaks_of([pattern])
    fit = tiny_solver.fit([SALT, near, large], pattern, peaks, refine=False)
    own = [(r.rwp, r.rwp_net, r.rwp_cell) for r in fit.refined]
    for (rwp, rwp_net, rwp_cell), net, cell in zip(own, fit.rwp_net, fit.rwp_cell, strict=True):
        assert net == rwp_net
        assert cell / net == pytest.approx(rwp_cell / rwp)
    assert fit.rwp_cell[1] < 0.2 * fit.rwp_net[1]
    assert fit.rwp_cell[2] > 0.5
    excess = features_of(fit, merge=False).matrix[:, ranking.FEATURES.index("excess")]
    assert excess[1] > 0.5
    assert excess[[0, 2]].max() < 0.2


# Embeddings and weights ---------------------------------------------------------------------------


def test_embeddings_are_unit_vectors_independent_of_company_and_cell(tiny_solver, pattern):
    crystals = list(SMALL.values())
    together = tiny_solver.embed_crystals(crystals)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    alone = np.concatenate([tiny_solver.embed_crystals([c]) for c in crystals[:2]])
    np.testing.assert_allclose(together[:2], alone, atol=1e-5)
    skew = np.array([[1, 1, 0], [0, 1, 0], [0, 2, 1]])
    wurtzite = TEXTBOOK["wurtzite"]
    skewed = Crystal(
        wurtzite.atomic_numbers,
        wurtzite.frac_coords @ np.linalg.inv(skew) % 1.0,
        skew @ wurtzite.lattice,
    )
    first, second = tiny_solver.embed_crystals([wurtzite, skewed])
    assert first @ second == pytest.approx(1.0, abs=1e-4)
    vector = tiny_solver.embed_patterns([pattern])
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), 1.0, atol=1e-5)
    assert tiny_solver.embed_crystals([]).shape == (0, 0)
    with pytest.raises(ValueError, match="larger than the 6 atoms"):
        tiny_solver.embed_crystals([Crystal(np.ones(7, int), np.zeros((7, 3)), np.eye(3) * 9)])


def test_weights_that_are_not_there_or_not_these(tiny_weights, tmp_path):
    with pytest.raises(ValueError, match=r"no weights 'nowhere': cpcp.safetensors and generator"):
        load_solver("nowhere")
    for name in ("cpcp", "generator"):
        (tmp_path / f"{name}.safetensors").write_bytes(
            (tiny_weights / "cpcp.safetensors").read_bytes()
        )
    (tmp_path / "ranker.json").write_bytes((tiny_weights / "ranker.json").read_bytes())
    with pytest.raises(ValueError, match="holds weights of 'cpcp', expected flow or ccsg"):
        load_solver(str(tmp_path))
    (tmp_path / "cpcp.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no readable safetensors file"):
        load_solver(str(tmp_path))


@pytest.mark.skipif(
    not (BUNDLED / "default" / "generator.safetensors").is_file(), reason="no bundled weights yet"
)
def test_default_weights_load():
    solver = load_solver("default")
    assert solver.max_atoms == 20
    assert set(solver.rankers) == {"refined", "raw"}
    similarity = solver.embed_patterns([simulate_pattern(SALT)]) @ solver.embed_crystals([SALT]).T
    assert similarity > 0.5


# Assessment ---------------------------------------------------------------------------------------


def items() -> list[assess.Item]:
    names = ("caesium_chloride", "rock_salt", "silicon")
    patterns = simulate_pattern([TEXTBOOK[n] for n in names])
    return [assess.Item(n, TEXTBOOK[n], p) for n, p in zip(names, patterns)]


def test_assessment_goes_on_after_a_cut_line(tiny_solver, tmp_path, monkeypatch):
    asked = items()
    first = assess.assess(tiny_solver, asked, tmp_path / "a.jsonl", 3, refine=False)
    lines = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 3
    (tmp_path / "b.jsonl").write_text(lines[0] + lines[1][: len(lines[1]) // 2])
    solved = []
    fit = Solver.fit

    def counted(self: Solver, *args: Any) -> Fit:
        solved.append(args[1])
        return fit(self, *args)

    monkeypatch.setattr(Solver, "fit", counted)
    again = assess.assess(tiny_solver, asked, tmp_path / "b.jsonl", 3, refine=False)
    assert len(solved) == 2
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 3
    for a, b in zip(first, again, strict=True):
        assert a.id == b.id
        np.testing.assert_array_equal(a.features, b.features)
        np.testing.assert_array_equal(a.group, b.group)
        for c, d in zip(a.candidates, b.candidates, strict=True):
            np.testing.assert_array_equal(c.lattice, d.lattice)
    for changes in ({"seed": 1}, {"num_candidates": 4}, {"refine": True}):
        options = {"num_candidates": 3, "refine": False, **changes}
        with pytest.raises(ValueError, match="choose another --out"):
            assess.assess(tiny_solver, asked, tmp_path / "a.jsonl", **options)
    others = tiny_solver._replace(name="others")
    with pytest.raises(ValueError, match="choose another --out"):
        assess.assess(others, asked, tmp_path / "a.jsonl", 3, refine=False)
    with pytest.raises(ValueError, match="'silicon' occurs more than once"):
        assess.assess(tiny_solver, [asked[2]] * 2, tmp_path / "c.jsonl", 3)


def test_repeated_structures_are_scored_behind_different_ones(tiny_solver):
    features = np.zeros((3, len(ranking.FEATURES)))
    features[:, 0] = (-3.0, -2.9, -1.0)  # log_misfit: the first two are the best
    found = assess.Assessed("a", [SALT] * 3, features, np.array([0, 0, 1]), {})
    records = [_record("a", k, rmse) for k, rmse in enumerate((None, 0.1, 0.2))]
    attempts = assess.ranked_attempts([found], records, tiny.ranker(log_misfit=-2.0), "field")
    order = sorted(attempts, key=lambda a: -a.score)
    assert [a.candidate for a in order] == [0, 2, 1]
    assert [a.rmse for a in order] == [None, 0.2, 0.1]
    (asked,) = assess.questions([found], records, "field")
    assert asked.matched.tolist() == [False, True]  # the first stands for the two that are equal


def _record(item: str, candidate: int, rmse: float | None) -> Any:
    from xtalnet_jax.evaluation.matching import MatchRecord

    return MatchRecord(item, candidate, {"field": rmse}, "ok", 0.1)


def test_report_card_from_end_to_end(tiny_solver, tmp_path, capsys):
    packed = load_set("textbook", tiny_solver.max_atoms)
    options = report_card.Options(num_items=3, num_candidates=3, pool=9, refine=False, workers=1)
    text = report_card.report(tiny_solver, packed, "textbook", options, tmp_path)
    assert (tmp_path / "results.md").read_text() == text + "\n"
    rows = json.loads((tmp_path / "results.json").read_text())
    said = json.dumps(rows)
    for word in ("retrieval", "calibrated ranker", "CPCP similarity", "random order", "shuffled"):
        assert word in said
    assert "textbook" in text
    assert len((tmp_path / "raw.jsonl").read_text().splitlines()) == 3
    assert len((tmp_path / "shuffled" / "raw.jsonl").read_text().splitlines()) == 3
    assert "calibration error" in capsys.readouterr().err
    again = report_card.report(tiny_solver, packed, "textbook", options, tmp_path)
    rows = [[line for line in t.splitlines() if line.startswith("|")] for t in (text, again)]
    assert len(rows[0]) == len(rows[1]) > 40  # notes may differ: a resumed run takes no time


@pytest.mark.parametrize(("solved", "rate"), [((True, False), 0.5), ((False, False), 0.0)])
def test_an_item_without_candidates_counts_as_not_matched(
    tiny_solver, tmp_path, monkeypatch, solved, rate
):
    left = iter([SALT] if own else [] for own in solved)
    monkeypatch.setattr(Solver, "propose", lambda *_: next(left))
    same = [("a", SALT), ("b", SALT)]
    packed = from_crystals(*zip(*same), lines_of([c for _, c in same], 1.0, 16))
    options = report_card.Options(
        num_items=2, num_candidates=1, pool=0, profile=False, controls=(), workers=1
    )
    report_card.report(tiny_solver, packed, "same", options, tmp_path)
    for row in load_results(tmp_path / "results.json"):
        assert row.num_items == 2
        assert row.values["match %"].value == rate


def test_report_card_looks_at_its_folder_first(tiny_solver, tmp_path: Path):
    (tmp_path / "file").write_text("")
    idle = tiny_solver._replace(generator=None, embedder=None)
    packed = load_set("textbook", tiny_solver.max_atoms)
    with pytest.raises(ValueError, match="cannot write"):
        report_card.report(idle, packed, "textbook", report_card.Options(), tmp_path / "file")
