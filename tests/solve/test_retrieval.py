"""Looking a pattern up: filters, re-ranking, files, and a build that can be interrupted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.data import cases
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.data.sources import NpzSource
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve import retrieval_build
from xtalnet_jax.solve.retrieval import RetrievalIndex
from xtalnet_jax.solve.retrieval_build import build_file
from xtalnet_jax.solve.solver import Solver

pytestmark = pytest.mark.optimised

TEXTBOOK = textbook_crystals()
SMALL = {name: c for name, c in TEXTBOOK.items() if len(c.atomic_numbers) <= 6}
SALT = TEXTBOOK["caesium_chloride"]


@pytest.fixture(scope="module")
def pattern() -> Pattern:
    return simulate_pattern(SALT)


@pytest.fixture(scope="module")
def index(tiny_solver: Solver) -> RetrievalIndex:
    return RetrievalIndex.build(SMALL.items(), tiny_solver)


# Queries ------------------------------------------------------------------------------------------


def test_index_finds_saves_and_loads(tiny_solver, pattern, tmp_path):
    done: list[int] = []
    index = RetrievalIndex.build(SMALL.items(), tiny_solver, chunk=4, progress=done.append)
    assert done == [*range(4, len(SMALL), 4), len(SMALL)]
    hits = index.query(pattern, k=99, rerank=0)
    assert [h.rank for h in hits] == list(range(1, len(SMALL) + 1))
    assert {h.id for h in hits} == set(SMALL)
    scores = [h.score for h in hits]
    assert scores == sorted(scores, reverse=True)
    assert {h.agreement for h in hits} == {None}
    expected = tiny_solver.embed_crystals([SMALL[h.id] for h in hits])
    vector = tiny_solver.embed_patterns([pattern])[0]
    np.testing.assert_allclose(scores, expected @ vector, atol=1e-5)
    assert next(h.formula for h in hits if h.id == "rutile") == "Ti2O4"
    index.save(tmp_path / "index.npz")
    again = RetrievalIndex.load(tmp_path / "index.npz", tiny_solver)
    assert again.query(pattern, 3) == index.query(pattern, 3)
    again = RetrievalIndex.load(tmp_path / "index.npz")  # the index names its weights
    assert again.query(pattern, 1) == index.query(pattern, 1)
    with pytest.raises(ValueError, match="was built with the weights"):
        RetrievalIndex.load(tmp_path / "index.npz", tiny_solver._replace(name="others"))
    changed = {**tiny_solver.embedder_params, "other": np.zeros(1)}
    with pytest.raises(ValueError, match="build it again"):
        RetrievalIndex.load(tmp_path / "index.npz", tiny_solver._replace(embedder_params=changed))
    index.entries._replace(arrays={}).save(tmp_path / "old.npz")
    with pytest.raises(ValueError, match="is no index of crystals"):
        RetrievalIndex.load(tmp_path / "old.npz", tiny_solver)


def test_index_that_cannot_be_built(tiny_solver):
    with pytest.raises(ValueError, match="no crystals"):
        RetrievalIndex.build([], tiny_solver)
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        RetrievalIndex.build([("a", SALT), ("a", SALT)], tiny_solver)
    numbered = RetrievalIndex.build([SALT, TEXTBOOK["silicon"]], tiny_solver)
    assert numbered.entries.ids == ("0", "1")


@pytest.mark.parametrize("factor", [1.0, 0.99])
def test_the_lines_find_what_an_untrained_model_does_not(index, factor):
    """Every crystal comes first for its own pattern, also where its cell is off by a percent."""
    measured = simulate_pattern(
        [c._replace(lattice=c.lattice * factor) for c in SMALL.values()], step=0.05
    )
    by_similarity = 0
    for name, one in zip(SMALL, measured):
        hits = index.query(one, k=5)
        assert hits[0].id == name
        assert hits[0].agreement > 0.9
        agreements = [h.agreement for h in hits]
        assert agreements == sorted(agreements, reverse=True)
        by_similarity += index.query(one, k=1, rerank=0)[0].id == name
    assert by_similarity < len(SMALL) / 2


def test_a_doublet_is_taken_for_one_line(index):
    """K-alpha2 is in the pattern of a laboratory tube; its peaks would count as unexplained."""
    from xtalnet_jax.pxrd.instrument import Instrument

    tube = Instrument(kalpha2_ratio=0.5, w=0.004)
    measured = simulate_pattern(SMALL["perovskite"], 1.54056, instrument=tube)
    (best,) = index.query(measured._replace(meta={"wavelengths": (1.54056, 1.54439)}), k=1)
    (as_one,) = index.query(measured._replace(meta={"wavelengths": (1.54056,)}), k=1)
    assert best.id == "perovskite"
    assert best.agreement > max(as_one.agreement, 0.95)


def test_only_the_shortlist_is_put_in_another_order(index, pattern):
    plain = index.query(pattern, k=len(SMALL), rerank=0)
    some = index.query(pattern, k=len(SMALL), rerank=4)
    assert {h.id for h in some[:4]} == {h.id for h in plain[:4]}
    assert [h.id for h in some[4:]] == [h.id for h in plain[4:]]
    assert all(h.agreement is None for h in some[4:])
    assert None not in {h.agreement for h in some[:4]}
    scores = {h.id: h.score for h in plain}
    assert all(h.score == scores[h.id] for h in some)
    # The shortlist may be longer than what is asked for: one from behind can come to the front.
    assert index.query(pattern, k=1)[0].id == "caesium_chloride"


@pytest.mark.parametrize("rerank", [0, 50])
@pytest.mark.parametrize(
    ("known", "names"),
    [
        ({"formula": "Ti3O6"}, {"rutile"}),
        ({"elements": ["Ti", "O"]}, {"rutile", "perovskite"}),
        ({"only_elements": ["Cs", "Cl", "Na"]}, {"caesium_chloride", "rock_salt"}),
        ({"elements": ["O"], "exclude_elements": ["Ti", "Ta"]}, {"wurtzite", "cuprite"}),
        ({"formula": "Au"}, set()),
    ],
)
def test_filters(index, pattern, known, names, rerank):
    every = index.query(pattern, k=len(SMALL), rerank=rerank)
    hits = index.query(pattern, k=len(SMALL), rerank=rerank, **known)
    assert [h.id for h in hits] == [h.id for h in every if h.id in names]
    assert len(hits) == len(names)
    assert [h.rank for h in hits] == list(range(1, len(hits) + 1))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": 0}, "expected at least 1 and 0"),
        ({"rerank": -1}, "expected at least 1 and 0"),
        ({"elements": ["Xx"]}, "unknown element 'Xx'"),
        ({"formula": "Ti("}, "brackets"),
    ],
)
def test_what_cannot_be_asked(index, pattern, asked, message):
    with pytest.raises(ValueError, match=message):
        index.query(pattern, **asked)


# Building into a file -----------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path, monkeypatch) -> NpzSource:
    """Twelve records; the second has too many atoms, the last is no crystal."""
    monkeypatch.setattr(retrieval_build, "CHUNK", 5)
    some = cases.crystals(12, max_atoms=4)
    some[1] = cases.crystals(1, seed=3)[0]._replace(
        atomic_numbers=np.full(7, 3), frac_coords=np.random.default_rng(0).random((7, 3))
    )
    some[11] = some[11]._replace(lattice=np.zeros((3, 3)))
    return NpzSource(cases.write_npz(tmp_path / "some.npz", some))


GOOD = [f"c{i}" for i in range(12) if i not in (1, 11)]


def stop_after(monkeypatch: pytest.MonkeyPatch, num: int) -> list[int]:
    """Let `Solver.embed_crystals` fail as if the process ended; return the sizes of its calls."""
    embed, calls = Solver.embed_crystals, []

    def counted(self: Solver, crystals: list[Any], *rest: Any) -> Any:
        if len(calls) == num:
            raise KeyboardInterrupt
        calls.append(len(crystals))
        return embed(self, crystals, *rest)

    monkeypatch.setattr(Solver, "embed_crystals", counted)
    return calls


def test_an_interrupted_build_goes_on(tiny_solver, source, tmp_path, monkeypatch, pattern):
    out, whole = tmp_path / "new" / "index.npz", tmp_path / "whole.npz"
    bad, progress = [], []
    build_file(source, whole, tiny_solver, bad.append, progress.append)
    assert [b.id for b in bad] == ["c1", "c11"]
    assert "7 atoms, at most 6" in bad[0].reason
    assert [(p.num_done, p.num_records, p.num_bad) for p in progress] == [
        (5, 12, 1), (10, 12, 1), (12, 12, 2),
    ]  # fmt: skip
    assert progress[0].per_second > 0
    assert progress[0].seconds_left > progress[-1].seconds_left == 0
    assert "10/12 records, 1 left out" in str(progress[1])

    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            build_file(source, out, tiny_solver)
    (waiting,) = out.with_name("index.npz.partial").iterdir()
    assert sorted(p.name for p in waiting.iterdir()) == ["000000.npz", "000001.npz"]
    assert not out.exists()
    calls, bad, progress = stop_after(monkeypatch, 99), [], []
    index = build_file(source, out, tiny_solver, bad.append, progress.append)
    assert calls == [1]  # c10; the chunks before were not embedded again
    assert [b.id for b in bad] == ["c1", "c11"]
    assert [p.num_done for p in progress] == [5, 10, 12]
    assert not out.with_name("index.npz.partial").exists()
    assert list(index.entries.ids) == GOOD
    assert index.query(pattern) == RetrievalIndex.load(whole, tiny_solver).query(pattern)
    assert out.read_bytes() == whole.read_bytes()

    written = out.stat().st_mtime_ns
    again = build_file(source, out, tiny_solver)
    assert (len(calls), out.stat().st_mtime_ns) == (1, written)  # nothing to do
    assert again.query(pattern) == index.query(pattern)


def test_parts_of_other_weights_or_of_another_source_are_not_used(
    tiny_solver, source, tmp_path, monkeypatch
):
    out = tmp_path / "index.npz"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            build_file(source, out, tiny_solver)
    other = json.loads(json.dumps({"weights": 1}))  # any other leaf is enough for another key
    changed = tiny_solver._replace(embedder_params={**tiny_solver.embedder_params, "other": other})
    assert retrieval_build.content_key(source, changed) != retrieval_build.content_key(
        source, tiny_solver
    )
    calls = stop_after(monkeypatch, 99)
    moved = NpzSource(
        cases.write_npz(tmp_path / "moved.npz", cases.crystals(6, seed=8, max_atoms=4))
    )
    index = build_file(moved, out, tiny_solver)
    assert sum(calls) == 6
    assert list(index.entries.ids) == [f"c{i}" for i in range(6)]
    assert not out.with_name("index.npz.partial").exists()
    build_file(source, out, tiny_solver)  # and an index of something else is written anew
    assert list(RetrievalIndex.load(out, tiny_solver).entries.ids) == GOOD


def test_build_file_refuses(tiny_solver, source, tmp_path):
    with pytest.raises(ValueError, match=r"ending in \.npz"):
        build_file(source, tmp_path / "index", tiny_solver)
    twice = cases.write_npz(tmp_path / "twice.npz", cases.crystals(6, max_atoms=4))
    arrays = dict(np.load(twice))
    arrays["id"][:] = "c3"
    np.savez(twice, **arrays)
    with pytest.raises(ValueError, match="'c3' occurs more than once"):
        build_file(NpzSource(twice), tmp_path / "i.npz", tiny_solver)
    flat = [c._replace(lattice=np.zeros((3, 3))) for c in cases.crystals(2)]
    unusable = NpzSource(cases.write_npz(tmp_path / "flat.npz", flat))
    with pytest.raises(ValueError, match="none of the 2 records"):
        build_file(unusable, tmp_path / "i.npz", tiny_solver)
    assert not (tmp_path / "i.npz").exists()
