"""Every form of the field comes in as the same crystals; what is broken is named and skipped."""

import csv
import os
import pickle

import numpy as np
import pytest

from tests.data import cases
from xtalnet_jax.data import safe_pickle
from xtalnet_jax.data.sources import open_source, readable

SOME = cases.crystals(3)


def assert_same(found, expected, atol=1e-6, any_order=False):
    if any_order:
        found, expected = in_order(found), in_order(expected)
    np.testing.assert_array_equal(found.atomic_numbers, expected.atomic_numbers)
    # Frames may differ; lengths and angles, and therefore distances, may not.
    cells = (found.lattice, expected.lattice)
    first, second = (np.asarray(c) @ np.asarray(c).T for c in cells)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=100 * atol)
    delta = np.asarray(found.frac_coords) - expected.frac_coords
    np.testing.assert_allclose(delta - np.rint(delta), 0, atol=atol)


def in_order(crystal):
    order = np.lexsort((*np.round(crystal.frac_coords, 4).T, crystal.atomic_numbers))
    return crystal._replace(
        atomic_numbers=crystal.atomic_numbers[order], frac_coords=crystal.frac_coords[order]
    )


def test_npz(tmp_path):
    split = np.array(["train", "val", "train"])
    path = cases.write_npz(tmp_path / "some.npz", SOME, split=split)
    source = open_source(path)
    assert len(source) == 3
    for record, expected in zip(source, SOME):
        assert_same(record.crystal, expected)
    assert [r.id for r in source] == ["c0", "c1", "c2"]
    assert [r.split for r in source] == list(split)
    assert [r.id for r in open_source(path, "train")] == ["c0", "c2"]
    with pytest.raises(ValueError, match="no split 'test', only train, val"):
        open_source(path, "test")


@pytest.mark.parametrize("subdir", [False, True])
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_lmdb_with_patterns(tmp_path, subdir, protocol):
    # Eleven records: keys sort by number, not as text.
    many = cases.crystals(11, seed=1)
    values = [pickle.dumps(cases.lmdb_record(c, i), protocol) for i, c in enumerate(many)]
    path = cases.write_lmdb(tmp_path / "val.lmdb", values, subdir)
    source = pickle.loads(pickle.dumps(open_source(tmp_path, "val")))  # workers get copies
    assert source.path == path
    records = list(readable(source))
    assert [r.id for r in records] == [str(i) for i in range(11)]
    for i, (record, expected) in enumerate(zip(records, many)):
        assert_same(record.crystal, expected)
        assert record.split == "val"
        np.testing.assert_array_equal(record.pattern.two_theta, cases.TWO_THETA)
        np.testing.assert_array_equal(record.pattern.intensity, cases.profile(i))


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_malicious_pickle_is_refused_and_not_run(tmp_path):
    good = pickle.dumps(cases.lmdb_record(SOME[0]))
    evil = pickle.dumps({**cases.lmdb_record(SOME[0]), "y": Malicious(tmp_path / "ran")})
    source = open_source(cases.write_lmdb(tmp_path / "x.lmdb", [good, evil, good]))
    bad = []
    assert len(list(readable(source, lambda *entry: bad.append(entry)))) == 2
    assert bad[0][0] == "record 1"
    assert "mkdir, which is neither a NumPy array nor a plain container" in bad[0][1]
    assert not (tmp_path / "ran").exists()
    pickle.loads(evil)  # the record is what it claims to be
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\ngetattr\n.",
        b"cnumpy.f2py.diagnose\nrun\n.",
        b"cnumpy\nload\n.",
        b"c_codecs\ndecode\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0ccore.os.exec\x93.",
        pickle.dumps(np.random.default_rng),
    ],
)
def test_only_arrays_and_containers_are_unpickled(data):
    with pytest.raises(ValueError, match="nothing of it was run"):
        safe_pickle.loads(data)


@pytest.mark.parametrize("data", [b"", b"not a pickle", pickle.dumps([1, 2])[:-2]])
def test_garbage_is_a_clear_error(data):
    with pytest.raises(ValueError, match="readable pickled record"):
        safe_pickle.loads(data)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_records_are_unpickled(protocol):
    record = {
        "list": [1, 2.5, "three", None, True, b"six"],
        "arrays": (np.arange(6).reshape(2, 3), np.zeros((0, 3), np.float32), np.float64(0.25)),
        "set": {1, 2},
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    found = safe_pickle.loads(pickle.dumps(record, protocol))
    assert found["list"] == record["list"]
    assert found["set"] == record["set"]
    for a, b in zip(found["arrays"], record["arrays"]):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    np.testing.assert_array_equal(found["fortran"], record["fortran"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": [1, 2, 3]}, "lacks or garbles"),
        ({"atom_type": ["x"]}, "lacks or garbles"),
        ({"atoms_num": 99}, "names"),
        ({"y": np.zeros(5)}, "1351 angles but 5 intensities"),
        (
            {"parameters": [4, 4, 4, 10, 20, 170]},
            "cannot be|not lengths and angles|spans no volume",
        ),
    ],
)
def test_garbled_lmdb_records(tmp_path, change, message):
    from xtalnet_jax.crystals.reduction import standardise

    value = pickle.dumps({**cases.lmdb_record(SOME[0]), **change})
    source = open_source(cases.write_lmdb(tmp_path / "x.lmdb", [value]))
    with pytest.raises(ValueError, match=message):
        standardise(source[0].crystal)


def test_csv(tmp_path):
    with (tmp_path / "test.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["", "material_id", "cif"])
        for i, crystal in enumerate(SOME):
            table.writerow([i, f"mp-{i}", cases.cif(crystal)])
        table.writerow([3, "mp-broken", cases.BROKEN_CIF])
        table.writerow([4, "mp-empty", ""])
    bad = []
    source = open_source(tmp_path, "test")
    records = list(readable(source, lambda *entry: bad.append(entry)))
    assert [r.id for r in records] == ["mp-0", "mp-1", "mp-2"]
    for record, expected in zip(records, SOME):
        assert_same(record.crystal, expected, atol=1e-5, any_order=True)
    assert [name for name, _ in bad] == ["mp-broken", "mp-empty"]
    assert all("not a readable CIF" in reason for _, reason in bad)


def test_cif_folder_lists_the_broken_one(tmp_path, caplog):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.cif").write_text(cases.cif(SOME[0]))
    (tmp_path / "deep" / "a.cif").write_text(cases.cif(SOME[1]))
    (tmp_path / "broken.cif").write_text(cases.BROKEN_CIF)
    source = open_source(tmp_path)
    assert len(source) == 3
    assert [r.id for r in readable(source)] == ["b", "deep/a"]
    assert "broken skipped: not a readable CIF" in caplog.text
    assert "1 of 3 records" in caplog.text


def test_disordered_cif_is_refused(tmp_path):
    text = cases.cif(SOME[0])
    lines = text.rstrip().splitlines()
    lines[-1] = lines[-1].rsplit(maxsplit=1)[0] + " 0.5"
    (tmp_path / "half.cif").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="disordered"):
        open_source(tmp_path)[0]


def test_fingerprint_follows_the_content(tmp_path):
    path = cases.write_npz(tmp_path / "some.npz", SOME)
    first = open_source(path).fingerprint()
    assert open_source(path).fingerprint() == first
    cases.write_npz(path, [*SOME[:2], SOME[2]._replace(lattice=SOME[2].lattice * 1.001)])
    assert open_source(path).fingerprint() != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "there is nothing at"),
        ("empty", "holds no .cif file"),
        ("text.txt", "is not one of .npz, .lmdb, .csv"),
        ("broken.npz", "not a readable npz file"),
        ("other.npz", "lacks offset, atomic_numbers, frac_coords, lattice"),
        ("broken.lmdb", "not a readable LMDB"),
        ("columns.csv", r"no column 'cif' \(columns: a, b\)"),
        ("splits", "holds the splits train, val: say which, not None"),
    ],
)
def test_what_cannot_be_opened(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "splits").mkdir()
    for file in ("text.txt", "broken.npz", "broken.lmdb", "splits/train.csv", "splits/val.csv"):
        (tmp_path / file).write_text("nonsense" * 1000)
    np.savez(tmp_path / "other.npz", id=np.zeros(2))
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / name)
