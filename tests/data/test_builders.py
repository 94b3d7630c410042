"""Data sets are built without TensorFlow and read back as the records they were made of."""

import csv
import inspect
import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests.data import cases
from xtalnet_jax.data import builders
from xtalnet_jax.data.packing import PackOptions, pack, pack_records
from xtalnet_jax.data.sources import open_source

SOME = cases.crystals(4)


def write_csv(path):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["material_id", "cif"])
        table.writerows([f"mp-{i}", cases.cif(c)] for i, c in enumerate(SOME))
        table.writerow(["mp-broken", cases.BROKEN_CIF])


def expected(source):
    records = [(source.name(i), lambda i=i: source[i]) for i in range(len(source))]
    return pack_records(records, PackOptions())[0]


def assert_close(found, wanted):
    assert list(found.id) == list(wanted.id)
    np.testing.assert_array_equal(found.atomic_numbers, wanted.atomic_numbers)
    np.testing.assert_allclose(found.lattice, wanted.lattice, atol=1e-5)
    delta = found.frac_coords - wanted.frac_coords
    np.testing.assert_allclose(delta - np.rint(delta), 0, atol=1e-6)
    np.testing.assert_allclose(found.lines_inv_d, wanted.lines_inv_d, atol=1e-5)
    for name in ("peaks_inv_d", "peaks_strength", "measured"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-6)


def test_csv_set_is_built_and_read_back(tmp_path, caplog):
    manual = tmp_path / "manual"
    manual.mkdir()
    write_csv(manual / "val.csv")
    source = builders.build("mp20", manual, tmp_path / "data", "val")
    assert "mp-broken left out: not a readable CIF" in caplog.text
    assert len(source) == 4
    assert {r.split for r in source} == {"val"}
    wanted = expected(open_source(manual, "val"))
    again = pickle.loads(pickle.dumps(open_source(source.path, "val")))
    assert_close(pack(again), wanted)
    assert source.fingerprint() == again.fingerprint()
    with pytest.raises(ValueError, match="holds the splits val: say which, not 'train'"):
        open_source(source.path, "train")
    # Built once: without its files it is still there.
    (manual / "val.csv").unlink()
    assert len(builders.build("mp20", manual, tmp_path / "data", "val")) == 4


def test_features_hold_the_lines(tmp_path):
    import tensorflow_datasets as tfds

    cases.write_npz(tmp_path / "train.npz", SOME)
    source = builders.build("npz", tmp_path, tmp_path / "data", "train")
    info = tfds.builder_from_directory(str(source.path))
    wanted = expected(open_source(tmp_path / "train.npz"))
    for k, entry in enumerate(info.as_data_source("train")):
        real = wanted.lines_inv_d[k] > 0
        pairs = np.stack([wanted.lines_inv_d[k][real], wanted.lines_strength[k][real]], -1)
        np.testing.assert_allclose(entry["lines"], pairs, atol=1e-5)
        assert entry["peaks"].shape == (0, 2)


def test_authors_lmdb_keeps_the_peaks_of_its_patterns(tmp_path):
    for split, some in (("train", SOME), ("test", SOME[:1])):
        values = [pickle.dumps(cases.lmdb_record(c, i)) for i, c in enumerate(some)]
        cases.write_lmdb(tmp_path / f"{split}.lmdb", values)
    source = builders.build("hmof100", tmp_path, tmp_path / "data", "train")
    wanted = expected(open_source(tmp_path / "train.lmdb"))
    assert (wanted.peaks_inv_d[:, :3] > 0).all()
    assert_close(pack(source), wanted)
    assert len(open_source(source.path, "test")) == 1


@pytest.mark.parametrize("folder", ["", "train"])
def test_cif_folder(tmp_path, folder):
    where = tmp_path / "cifs" / folder
    where.mkdir(parents=True)
    for i, crystal in enumerate(SOME):
        (where / f"{i}.cif").write_text(cases.cif(crystal))
    source = builders.build("cif_folder", tmp_path / "cifs", tmp_path / "data", "train")
    assert [r.id for r in source] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("name", builders.NAMES)
def test_every_builder_says_where_it_comes_from(name):
    import importlib

    from xtalnet_jax.data.builders import base

    module = importlib.import_module(f"xtalnet_jax.data.builders.{name}")
    (builder,) = [b for b in vars(module).values() if base.is_builder(b, module.__name__)]
    assert builder.name == name
    assert builder.TITLE
    assert builder.URL
    assert builder.LICENCE
    assert "{split}" in builder.FILE
    if name not in ("npz", "cif_folder"):
        assert builder.URL.startswith("https://")
        assert builder.CITATION.startswith("@")
    assert inspect.getdoc(builder)


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="no data set 'mp21', only carbon24"):
        builders.build("mp21", tmp_path, tmp_path, "train")
    with pytest.raises(ValueError, match="there is no folder"):
        builders.build("mp20", tmp_path / "nothing", tmp_path, "train")
    with pytest.raises(ValueError, match=r"holds no files of perov5: put train.csv, val.csv"):
        builders.build("perov5", tmp_path, tmp_path / "data", "train")


def test_no_tensorflow_and_nothing_heavy_before_it_is_needed():
    code = (
        "import sys; import xtalnet_jax.data.builders, xtalnet_jax.data.packing\n"
        "assert not {'tensorflow_datasets', 'pymatgen', 'lmdb', 'spglib'} & set(sys.modules)\n"
        "import xtalnet_jax.data.builders.base\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
