"""A packed set holds the crystals of its source, however it was interrupted, split and stored."""

import json
import pickle

import numpy as np
import pytest

from tests.data import cases
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data import packed as packed_sets
from xtalnet_jax.data import packing
from xtalnet_jax.data.packing import pack, pack_file
from xtalnet_jax.data.sources import open_source
from xtalnet_jax.pxrd.simulate import lines_of

OPTIONS = {"num_lines": 32, "inv_d_max": 0.5}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 4)


@pytest.fixture
def source(tmp_path):
    # The third has two atoms in one place.
    some = cases.crystals(10)
    twice = some[2].frac_coords[:1].repeat(2, 0)
    some[2] = some[2]._replace(atomic_numbers=np.array([8, 8]), frac_coords=twice)
    return open_source(cases.write_npz(tmp_path / "some.npz", some))


def assert_equal(a, b):
    for name in a._fields:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_crystals_and_lines_are_those_of_the_source(source, small_chunks):
    bad, progress = [], []
    found = pack(source, **OPTIONS, on_bad=bad.append, on_progress=progress.append)
    assert [entry.id for entry in bad] == ["c2"]
    assert "0 angstrom apart" in bad[0].reason
    assert list(found.id) == [f"c{i}" for i in range(10) if i != 2]
    assert [p.num_done for p in progress] == [4, 8, 10]
    assert progress[-1].num_bad == 1
    assert progress[-1].seconds_left == 0
    expected = [standardise(source[i].crystal) for i in range(10) if i != 2]
    lines = lines_of(expected, 0.5, 32)
    np.testing.assert_allclose(found.lines_inv_d, lines.inv_d, atol=1e-6)
    np.testing.assert_allclose(found.lines_strength, lines.strength, atol=1e-5)
    assert (found.lines_strength.max(1) == 1).all()
    for k, crystal in enumerate(expected):
        mine = found.crystal(k)
        np.testing.assert_array_equal(mine.atomic_numbers, crystal.atomic_numbers)
        np.testing.assert_array_equal(mine.frac_coords, crystal.frac_coords)
        np.testing.assert_allclose(mine.lattice, crystal.lattice, rtol=1e-6, atol=1e-6)


def test_file_keeps_what_a_pattern_can_tell(source, tmp_path):
    found = pack(source, **OPTIONS)
    strength = found.lines_strength.copy()
    strength[0, 0] = 1e-9  # below the smallest float16
    found = found._replace(lines_strength=strength)
    packed_sets.save(found, tmp_path / "p.npz", {"note": 1})
    again = packed_sets.load(tmp_path / "p.npz")
    assert packed_sets.load_meta(tmp_path / "p.npz")["note"] == 1
    for name in ("id", "num_atoms", "offset", "atomic_numbers", "frac_coords", "lattice"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
        assert getattr(found, name).dtype == getattr(again, name).dtype
    np.testing.assert_allclose(again.lines_inv_d, found.lines_inv_d, atol=0.5 / 65535)
    np.testing.assert_allclose(again.lines_strength, strength, rtol=5e-4, atol=1e-7)
    np.testing.assert_array_equal(again.lines_strength > 0, strength > 0)
    packed_sets.save(found, tmp_path / "exact.npz", exact=True)
    assert_equal(packed_sets.load(tmp_path / "exact.npz"), found)
    assert sorted(p.name for p in tmp_path.glob("*.tmp")) == []


class Stop(Exception):
    pass


def test_interrupted_packing_goes_on_and_gives_the_same(
    source, tmp_path, small_chunks, monkeypatch
):
    whole = pack_file(source, tmp_path / "whole.npz", **OPTIONS)
    out = tmp_path / "out.npz"

    def stop(progress):
        if progress.num_done == 8:
            raise Stop

    with pytest.raises(Stop):
        pack_file(source, out, **OPTIONS, on_progress=stop)
    assert not out.exists()
    read = []
    read_record = type(source).__getitem__

    def reading(self, i):
        read.append(i)
        return read_record(self, i)

    monkeypatch.setattr(type(source), "__getitem__", reading)
    again = pack_file(source, out, **OPTIONS)
    assert read == [8, 9]  # the chunks made before were not made again
    assert_equal(again, whole)
    assert not (tmp_path / "out.npz.parts").exists()
    assert json.loads((tmp_path / "out.npz.bad.json").read_text())[0]["id"] == "c2"
    # Now it is there: nothing is read any more, unless something else is asked for.
    assert_equal(pack_file(source, out, **OPTIONS), whole)
    assert read == [8, 9]
    other = pack_file(source, out, **{**OPTIONS, "max_atoms": 3})
    assert list(other.num_atoms) == [n for n in whole.num_atoms if n <= 3]
    assert len(read) == 12


def test_chunks_of_other_options_are_not_used(source, tmp_path, small_chunks):
    def stop(progress):
        raise Stop

    with pytest.raises(Stop):
        pack_file(source, tmp_path / "out.npz", **OPTIONS, on_progress=stop)
    found = pack_file(source, tmp_path / "out.npz", num_lines=8, inv_d_max=0.5)
    assert found.lines_inv_d.shape == (9, 8)


@pytest.mark.slow
def test_several_processes_give_the_same(source, small_chunks, tmp_path, monkeypatch):
    monkeypatch.undo()  # spawned processes see the module as it is on disk
    many = open_source(cases.write_npz(tmp_path / "many.npz", cases.crystals(1500, max_atoms=2)))
    assert_equal(pack(many, **OPTIONS), pack(many, **OPTIONS, workers=2))


def test_nothing_usable_is_an_error(source):
    with pytest.raises(ValueError, match=r"none of the 10 records of .* is usable"):
        pack(source, **OPTIONS, max_atoms=0, on_bad=lambda entry: None)


def test_own_patterns_become_the_peaks_of_the_paper(tmp_path):
    from xtalnet_jax.pxrd.pattern import two_theta_from_inv_d
    from xtalnet_jax.pxrd.peaks import GRID_START, GRID_STEP, reference_peaks

    records = [cases.lmdb_record(c, i) for i, c in enumerate(cases.crystals(3))]
    records[1]["y"] = np.zeros(1351)  # a pattern without any intensity
    path = cases.write_lmdb(tmp_path / "x.lmdb", [pickle.dumps(r) for r in records])
    bad = []
    found = pack_file(open_source(path), tmp_path / "p.npz", **OPTIONS, on_bad=bad.append)
    assert [entry.id for entry in bad] == ["record 1"]
    assert found.num_crystals == 2
    for k, seed in enumerate((0, 2)):
        real = found.peaks_inv_d[k] > 0
        angles = two_theta_from_inv_d(found.peaks_inv_d[k][real], 1.54184)
        np.testing.assert_allclose(angles, cases.PEAK_ANGLES, atol=1e-3)
        # The reference's token is found again, in spite of the storage in steps.
        index, height = reference_peaks(cases.TWO_THETA, cases.profile(seed))
        np.testing.assert_array_equal(np.rint((angles - GRID_START) / GRID_STEP), index)
        np.testing.assert_allclose(found.peaks_strength[k][real], height, rtol=1e-3)
        ends = two_theta_from_inv_d(found.measured[k], 1.54184)
        np.testing.assert_allclose(ends, [3, 30], atol=1e-4)


def test_select_and_concatenate(source):
    found = pack(source, **OPTIONS)
    rows = np.array([4, 0, 7])
    part = found.select(rows)
    for k, row in enumerate(rows):
        for a, b in zip(part.crystal(k), found.crystal(int(row))):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(part.lines_inv_d, found.lines_inv_d[rows])
    rest = found.select(~np.isin(np.arange(9), rows))
    assert rest.num_crystals == 6
    both = packed_sets.concatenate([part, rest])
    assert_equal(both.select(np.argsort(both.id)), found)
    assert found.select(found.num_atoms > 100).num_crystals == 0


@pytest.mark.parametrize(("content", "message"), [(None, "no packed set"), ("x", "not a packed")])
def test_load_refuses_other_files(tmp_path, content, message):
    path = tmp_path / "p.npz"
    if content:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"{message}.*launch.prepare"):
        packed_sets.load(path)


def test_set_of_another_format_is_refused(tmp_path):
    np.savez(tmp_path / "p.npz", meta=np.array(json.dumps({"format": 0})))
    with pytest.raises(ValueError, match="format 0, expected 1: prepare it again"):
        packed_sets.load(tmp_path / "p.npz")
