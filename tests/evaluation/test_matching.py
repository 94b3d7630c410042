import json
import os
import time

import numpy as np
import pytest

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.evaluation import matching
from xtalnet_jax.evaluation.matching import (
    FIELD,
    PAPER,
    PAPER_SCRIPT,
    STRICT,
    TOLERANCES,
    MatchPair,
    load_match_records,
    match_many,
    match_rmse,
    same_reduced_composition,
)

ROCK_SALT = Crystal(
    np.array([11, 17]),
    np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]),
    np.array([[0.0, 2.82, 2.82], [2.82, 0.0, 2.82], [2.82, 2.82, 0.0]]),
)
RUTILE = Crystal(
    np.array([22, 22, 8, 8, 8, 8]),
    np.array(
        [
            [0, 0, 0],
            [0.5, 0.5, 0.5],
            [0.305, 0.305, 0],
            [0.695, 0.695, 0],
            [0.195, 0.805, 0.5],
            [0.805, 0.195, 0.5],
        ]
    ),
    np.diag([4.594, 4.594, 2.959]),
)


def low_symmetry(seed=0):
    """Five different elements in a triclinic cell, no two atoms closer than 1.9 angstrom."""
    rng = np.random.default_rng(seed)
    coords = np.array([[0, 0, 0], [0.5, 0, 0.1], [0, 0.5, 0.2], [0.5, 0.5, 0.6], [0.1, 0.2, 0.55]])
    lattice = np.array([[5.0, 0, 0], [0.6, 5.5, 0], [0.4, -0.7, 6.1]])
    return Crystal(
        np.array([20, 22, 8, 16, 17]), (coords + 0.01 * rng.normal(size=(5, 3))) % 1, lattice
    )


# --- one pair ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", TOLERANCES.values(), ids=TOLERANCES)
@pytest.mark.parametrize("crystal", [ROCK_SALT, RUTILE, low_symmetry()], ids=["NaCl", "TiO2", "P1"])
def test_the_same_crystal_in_another_description_matches_exactly(crystal, tolerance):
    rng = np.random.default_rng(1)
    order = rng.permutation(len(crystal.atomic_numbers))
    cell = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]])  # unimodular: the same lattice
    other = Crystal(
        crystal.atomic_numbers[order],
        ((crystal.frac_coords[order] + rng.uniform(size=(1, 3))) @ np.linalg.inv(cell)) % 1,
        cell @ crystal.lattice,
    )
    assert match_rmse(other, crystal, tolerance) == pytest.approx(0.0, abs=1e-5)


def test_supercell_and_volume_do_not_count():
    doubled = Crystal(
        np.tile(RUTILE.atomic_numbers, 2),
        np.concatenate([RUTILE.frac_coords, RUTILE.frac_coords + [0, 0, 1]]) * [1, 1, 0.5],
        RUTILE.lattice * np.array([[1.05], [1.05], [2.1]]),
    )
    assert match_rmse(doubled, RUTILE, STRICT) == pytest.approx(0.0, abs=1e-5)


def test_known_displacement_gives_the_known_rmse():
    truth = low_symmetry()
    # One atom moved by d: after the best common shift the mean square is d^2 (n - 1) / n^2.
    n, d = 5, 0.5
    shift = np.zeros((n, 3))
    shift[2] = [d, 0, 0]
    moved = truth._replace(
        frac_coords=(truth.frac_coords + shift @ np.linalg.inv(truth.lattice)) % 1
    )
    scale = (abs(np.linalg.det(truth.lattice)) / n) ** (1 / 3)
    expected = d * np.sqrt(n - 1) / n / scale
    assert match_rmse(moved, truth, FIELD) == pytest.approx(expected, rel=1e-4)
    assert match_rmse(truth, moved, FIELD) == pytest.approx(expected, rel=1e-4)


def test_known_random_displacements_give_the_known_rmse():
    truth = low_symmetry()
    shift = np.random.default_rng(5).normal(0, 0.1, (5, 3))
    moved = truth._replace(
        frac_coords=(truth.frac_coords + shift @ np.linalg.inv(truth.lattice)) % 1
    )
    scale = (abs(np.linalg.det(truth.lattice)) / 5) ** (1 / 3)
    expected = np.sqrt(((shift - shift.mean(0)) ** 2).sum(1).mean()) / scale
    assert match_rmse(moved, truth, STRICT) == pytest.approx(expected, rel=1e-4)


def test_tolerances_decide():
    truth = low_symmetry()
    sheared = truth._replace(lattice=truth.lattice * np.array([[1.0], [1.0], [1.4]]))
    # c/a grows by 40 %: within ltol .3 of the volume-scaled lengths, not within .2
    assert match_rmse(sheared, truth, STRICT) is None
    assert match_rmse(sheared, truth, PAPER) is None
    assert match_rmse(sheared, truth, PAPER_SCRIPT) is not None
    assert match_rmse(sheared, truth, FIELD) is not None


def test_other_composition_never_matches_and_the_prefilter_agrees_with_the_matcher():
    from pymatgen.analysis.structure_matcher import StructureMatcher

    swapped = RUTILE._replace(atomic_numbers=np.array([22, 22, 8, 8, 8, 16]))
    shorter = Crystal(RUTILE.atomic_numbers[:5], RUTILE.frac_coords[:5], RUTILE.lattice)
    loosest = StructureMatcher(stol=0.9, angle_tol=10, ltol=0.3)
    for other in (swapped, shorter, ROCK_SALT):
        assert not same_reduced_composition(other, RUTILE)
        assert match_rmse(other, RUTILE, PAPER_SCRIPT) is None
        assert loosest.get_rms_dist(other.to_structure(), RUTILE.to_structure()) is None
    assert same_reduced_composition(
        RUTILE, Crystal(np.array([8, 22, 8]), np.zeros((3, 3)), np.eye(3))
    )


def test_what_is_no_crystal_matches_nothing_but_a_bad_truth_is_an_error():
    flat = ROCK_SALT._replace(lattice=np.ones((3, 3)))
    nan = ROCK_SALT._replace(frac_coords=np.full((2, 3), np.nan))
    for bad in (flat, nan):
        assert match_rmse(bad, ROCK_SALT, PAPER) is None
        with pytest.raises(ValueError, match="true structure"):
            match_rmse(ROCK_SALT, bad, PAPER)


# --- many pairs ----------------------------------------------------------------------------------


def fake_match(predicted, truth, tolerance):
    """Stands in for the matcher: the first atomic number says what it does."""
    what = int(predicted.atomic_numbers[0])
    if what == 1:
        time.sleep(100_000)
    if what == 2:
        raise RuntimeError("strange crystal")
    if what == 3:
        os._exit(7)
    if what == 4 and tolerance == STRICT:
        time.sleep(100_000)
    return what + tolerance.stol


def pair(item, what, candidate=0):
    crystal = Crystal(np.array([what]), np.zeros((1, 3)), np.eye(3))
    return MatchPair(item, candidate, crystal, crystal)


BOTH = {"field": FIELD, "strict": STRICT}


def test_in_process_results_and_errors_keep_their_order():
    records = match_many([pair("a", 10), pair("b", 2), pair("c", 11)], BOTH, match_fn=fake_match)
    assert [r.item for r in records] == ["a", "b", "c"]
    assert records[0].rmse == {"field": 10.5, "strict": 10.3}
    assert records[1].rmse == {"field": None, "strict": None}
    assert records[1].status == "error: RuntimeError: strange crystal"
    assert records[2].status == "ok"


def test_hanging_and_dying_pairs_are_recorded_and_their_workers_replaced(tmp_path):
    kinds = [10, 1, 2, 3, 4, 11, 12, 1, 13]
    seen = []
    # That this returns at all shows that the limit holds: the pairs would sleep for a day. No bound
    # on the time it takes, so that a busy machine does not fail the test.
    records = match_many(
        [pair(str(i), what) for i, what in enumerate(kinds)],
        BOTH,
        workers=2,
        timeout_s=3.0,
        record_path=tmp_path / "match.jsonl",
        progress=lambda done, total: seen.append((done, total)),
        match_fn=fake_match,
    )
    assert [r.item for r in records] == [str(i) for i in range(9)]
    assert [r.status for r in records] == [
        "ok",
        "timeout",
        "error: RuntimeError: strange crystal",
        "error: worker died with exit code 7",
        "timeout",
        "ok",
        "ok",
        "timeout",
        "ok",
    ]
    assert records[8].rmse == {"field": 13.5, "strict": 13.3}
    # what was finished before the limit is kept
    assert records[4].rmse == {"field": 4.5, "strict": None}
    assert records[1].seconds >= 3.0
    assert seen == [(i, 9) for i in range(1, 10)]
    by_item = {r.item: r for r in load_match_records(tmp_path / "match.jsonl")}
    assert [by_item[str(i)] for i in range(9)] == records


def test_real_pairs_give_the_same_in_processes_as_here():
    truth = low_symmetry()
    pairs = [MatchPair("x", i, low_symmetry(i), truth) for i in range(4)]
    pairs.append(MatchPair("y", 0, RUTILE, truth))
    here = match_many(pairs)
    there = match_many(pairs, workers=2, timeout_s=3600)
    assert [r.rmse for r in here] == [r.rmse for r in there]
    assert here[0].rmse["strict"] == pytest.approx(0.0, abs=1e-5)
    assert here[1].rmse["strict"] > 0.001
    assert set(here[4].rmse.values()) == {None}


def test_a_record_file_is_resumed_even_after_a_torn_line(tmp_path):
    path = tmp_path / "match.jsonl"
    pairs = [pair("a", 10, c) for c in range(4)]
    full = match_many(pairs, BOTH, record_path=path, match_fn=fake_match)
    lines = path.read_text().splitlines(keepends=True)
    assert [json.loads(line)["candidate"] for line in lines] == [0, 1, 2, 3]

    path.write_text("".join(lines[:2]) + lines[2][:20])
    calls = []

    def counting(predicted, truth, tolerance):
        calls.append(tolerance)
        return fake_match(predicted, truth, tolerance)

    again = match_many(pairs, BOTH, record_path=path, match_fn=counting)
    assert len(calls) == 2 * len(BOTH)
    assert [r.rmse for r in again] == [r.rmse for r in full]
    assert len(path.read_text().splitlines()) == 4
    assert load_match_records(path) == again
    match_many(pairs, BOTH, record_path=path, match_fn=counting)
    assert len(calls) == 2 * len(BOTH)


def test_failed_pairs_are_done_again_only_on_request(tmp_path):
    path = tmp_path / "match.jsonl"
    pairs = [pair("a", 2), pair("b", 10)]
    match_many(pairs, BOTH, record_path=path, match_fn=fake_match)
    mended = lambda predicted, truth, tolerance: 0.25  # noqa: E731
    kept = match_many(pairs, BOTH, record_path=path, match_fn=mended)
    assert kept[0].status.startswith("error")
    redone = match_many(pairs, BOTH, record_path=path, retry_failed=True, match_fn=mended)
    assert redone[0].rmse == {"field": 0.25, "strict": 0.25}
    assert redone[1] == kept[1]
    assert {r.item: r for r in load_match_records(path)}["a"] == redone[0]


def test_records_of_other_structures_or_tolerances_are_refused(tmp_path):
    path = tmp_path / "match.jsonl"
    match_many([pair("a", 10)], BOTH, record_path=path, match_fn=fake_match)
    with pytest.raises(ValueError, match="other structures"):
        match_many([pair("a", 11)], BOTH, record_path=path, match_fn=fake_match)
    with pytest.raises(ValueError, match="other structures"):
        match_many([pair("a", 10)], {"field": FIELD}, record_path=path, match_fn=fake_match)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        match_many([pair("a", 10), pair("a", 11)])
    with pytest.raises(ValueError, match="positive"):
        match_many([], workers=0)
    with pytest.raises(ValueError, match="tolerance"):
        match_many([], {})
    (tmp_path / "x.jsonl").write_text('{"item": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        load_match_records(tmp_path / "x.jsonl")
    assert match_many([], workers=3, timeout_s=1.0) == []


def test_the_presets_are_those_of_the_specification():
    assert matching.TOLERANCES == {
        "paper": (0.7, 5.0, 0.2),
        "paper_script": (0.9, 10.0, 0.3),
        "field": (0.5, 10.0, 0.3),
        "strict": (0.3, 5.0, 0.2),
    }
