"""Where crystals come from: one `Source` interface over the formats of the field.

A source is an indexable list of `Record`. It never repairs: a record that cannot be read raises
``ValueError`` when it is asked for, and `readable` lists and skips such records. Packing for
training is `packed`.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data import safe_pickle
from xtalnet_jax.pxrd.pattern import CU_KALPHA, Pattern

_log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_WHOLE_FILE = 64 << 20  # bytes up to which a fingerprint reads everything
_FILE_ENDS = 1 << 20


class OwnPeaks(NamedTuple):
    """Peaks of the pattern that a source brings along."""

    inv_d: np.ndarray  # [n_peak] 1/angstrom
    strength: np.ndarray  # [n_peak] 0..1
    measured: np.ndarray  # [2] first and last measured 1/d, 1/angstrom


class Record(NamedTuple):
    """One entry of a source."""

    id: str
    crystal: Crystal
    pattern: Pattern | None = None  # only where the source brings its own
    split: str | None = None
    peaks: OwnPeaks | None = None  # only where the source has found them before


class Source(ABC):
    """An indexable list of records; cheap to open, picklable, so that workers can share it."""

    path: Path

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: int) -> Record:
        """Read record ``i``; ValueError where it cannot be read."""

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def name(self, i: int) -> str:
        """What to call record ``i``, also when it cannot be read."""
        return self._name(i)

    def fingerprint(self) -> str:
        """A hash of the content, by which packed sets know whether they are up to date."""
        return fingerprint(self._contents())

    def _name(self, i: int) -> str:
        return f"record {i}"

    def _contents(self) -> list[Path]:
        return [self.path]


def readable(source: Source, on_bad: Callable[[str, str], None] | None = None) -> Iterator[Record]:
    """Yield the records that can be read; hand the name and the reason of each other to ``on_bad``.

    Without ``on_bad`` every bad record is logged, and their number at the end.
    """
    num_bad = 0
    for i in range(len(source)):
        try:
            yield source[i]
        except ValueError as error:
            num_bad += 1
            if on_bad is None:
                _log.warning("%s skipped: %s", source.name(i), error)
            else:
                on_bad(source.name(i), str(error))
    if num_bad and on_bad is None:
        _log.warning("%d of %d records of %s skipped", num_bad, len(source), source.path)


def fingerprint(paths: list[Path]) -> str:
    """Hash names, sizes and contents of files (of the largest ones only the ends, and the date)."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0".encode())
        with path.open("rb") as file:
            if stat.st_size <= _WHOLE_FILE:
                digest.update(file.read())
            else:
                digest.update(file.read(_FILE_ENDS))
                file.seek(-_FILE_ENDS, 2)
                digest.update(file.read())
                digest.update(str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


class NpzSource(Source):
    """The compact form: flattened arrays of all crystals in one ``.npz``.

    Arrays: ``id, offset`` (n + 1), ``atomic_numbers, frac_coords`` (flattened), ``lattice``
    (n, 3, 3; rows are vectors), optionally ``split``.
    """

    _FIELDS = ("id", "offset", "atomic_numbers", "frac_coords", "lattice", "split")

    def __init__(self, path: str | Path, split: str | None = None):
        self.path = Path(path)
        try:
            with np.load(self.path) as file:
                arrays = {k: file[k] for k in file.files if k in self._FIELDS}
        except Exception as error:
            raise ValueError(f"{path} is not a readable npz file ({error})") from None
        missing = [k for k in self._FIELDS[:-1] if k not in arrays]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}: is it a set of crystals?")
        self._arrays, self._split = arrays, split
        self._rows = np.arange(len(arrays["id"]))
        if "split" in arrays and split is not None:
            self._rows = np.flatnonzero(arrays["split"] == split)
            if not len(self._rows):
                known = ", ".join(map(str, np.unique(arrays["split"])))
                raise ValueError(f"{path} has no split {split!r}, only {known}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Record:
        row, a = self._rows[i], self._arrays
        atoms = slice(a["offset"][row], a["offset"][row + 1])
        crystal = Crystal(
            a["atomic_numbers"][atoms].astype(np.int32), a["frac_coords"][atoms], a["lattice"][row]
        )
        split = str(a["split"][row]) if "split" in a else self._split
        return Record(str(a["id"][row]), crystal, None, split)

    def _name(self, i: int) -> str:
        return str(self._arrays["id"][self._rows[i]])


class LmdbSource(Source):
    """The file form of hMOF-100 and hMOF-400: pickled dicts in an LMDB.

    A record holds ``atom_type`` (list of Z), ``atom_frac_pos`` [n, 3], ``parameters``
    (a, b, c, alpha, beta, gamma) and the pattern ``x`` (2-theta, degrees) and ``y``. Records are
    read by `safe_pickle`, so a foreign file cannot run code.
    """

    def __init__(self, path: str | Path, split: str | None = None):
        self.path, self._split = Path(path), split
        self._env: Any = None  # opened where it is used: it does not survive pickling
        with self._open().begin() as transaction:
            keys = [bytes(k) for k in transaction.cursor().iternext(values=False)]
        # Beside the records some writers store their number under a word.
        self._keys = sorted((k for k in keys if k.isdigit()), key=int)
        if not self._keys:
            raise ValueError(f"{path} holds no numbered records ({len(keys)} keys in all)")

    def _open(self) -> Any:
        if self._env is None:
            import lmdb

            try:
                self._env = lmdb.open(
                    str(self.path), subdir=self.path.is_dir(), readonly=True, lock=False,
                    readahead=False, max_readers=1,
                )  # fmt: skip
            except lmdb.Error as error:
                raise ValueError(f"{self.path} is not a readable LMDB ({error})") from None
        return self._env

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_env": None}

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, i: int) -> Record:
        with self._open().begin() as transaction:
            entry = safe_pickle.loads(transaction.get(self._keys[i]))
        try:
            numbers = np.asarray(entry["atom_type"], np.int32).reshape(-1)
            frac = np.asarray(entry["atom_frac_pos"], np.float64).reshape(-1, 3)
            parameters = np.asarray(entry["parameters"], np.float64).reshape(6)
            x, y = (np.asarray(entry[k], np.float64).reshape(-1) for k in ("x", "y"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "the record lacks or garbles one of atom_type, atom_frac_pos, parameters, x, y"
                f" ({error})"
            ) from None
        if len(frac) != len(numbers) or int(entry.get("atoms_num", len(frac))) != len(frac):
            raise ValueError(f"the record names {len(numbers)} atoms but holds {len(frac)}")
        if len(x) != len(y):
            raise ValueError(f"the pattern has {len(x)} angles but {len(y)} intensities")
        crystal = Crystal(numbers, frac, _lattice(parameters))
        identity = str(entry.get("id", self._keys[i].decode()))
        return Record(identity, crystal, Pattern(x, y, CU_KALPHA), self._split)

    def _contents(self) -> list[Path]:
        return [self.path / "data.mdb" if self.path.is_dir() else self.path]


class CsvSource(Source):
    """A table with a ``cif`` column: MP-20, Perov-5, Carbon-24 and MPTS-52 are published so."""

    def __init__(self, path: str | Path, split: str | None = None):
        self.path, self._split = Path(path), split
        csv.field_size_limit(1 << 30)
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            names = rows.fieldnames or ()
            if "cif" not in names:
                found = ", ".join(filter(None, names)) or "none"
                raise ValueError(f"{path} has no column 'cif' (columns: {found})")
            key = next((k for k in ("material_id", "id") if k in names), None)
            table = [(row[key] if key else str(i), row["cif"] or "") for i, row in enumerate(rows)]
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: int) -> Record:
        identity, cif = self._table[i]
        return Record(identity, _crystal_from_cif(cif), None, self._split)

    def _name(self, i: int) -> str:
        return self._table[i][0]


class CifFolderSource(Source):
    """All ``.cif`` files below a folder, in the order of their names."""

    def __init__(self, path: str | Path, split: str | None = None):
        self.path, self._split = Path(path), split
        self._files = sorted(self.path.rglob("*.cif"))
        if not self._files:
            raise ValueError(f"{path} holds no .cif file")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Record:
        text = self._files[i].read_text(encoding="utf-8", errors="replace")
        return Record(self.name(i), _crystal_from_cif(text), None, self._split)

    def _name(self, i: int) -> str:
        return str(self._files[i].relative_to(self.path).with_suffix(""))

    def _contents(self) -> list[Path]:
        return self._files


def open_source(path: str | Path, split: str | None = None) -> Source:
    """Open whatever is at ``path``: npz, LMDB, csv with a ``cif`` column, or a folder.

    A folder may hold a prepared tfds data set, ``train|val|test`` files of one of the forms above
    (then ``split`` says which), or CIF files.

    Raises:
        ValueError: nothing there, or nothing that is understood.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is nothing at {path}")
    if path.is_dir() and not (path / "data.mdb").exists():
        return _open_folder(path, split)
    kind: Callable[..., Source] | None = {
        ".npz": NpzSource,
        ".lmdb": LmdbSource,
        ".mdb": LmdbSource,
        ".csv": CsvSource,
    }.get(path.suffix.lower(), LmdbSource if path.is_dir() else None)
    if kind is None:
        raise ValueError(f"{path} is not one of .npz, .lmdb, .csv or a folder of .cif files")
    return kind(path, split)


def _open_folder(path: Path, split: str | None) -> Source:
    if (path / "dataset_info.json").exists():
        from xtalnet_jax.data.builders.source import TfdsSource

        return TfdsSource(path, split)
    files = {f.stem: f for f in path.iterdir() if f.suffix in (".npz", ".lmdb", ".csv")}
    if split in files:
        return open_source(files[split], split)
    present = [s for s in SPLITS if s in files]
    if present:
        raise ValueError(f"{path} holds the splits {', '.join(present)}: say which, not {split!r}")
    return CifFolderSource(path, split)


def _crystal_from_cif(text: str) -> Crystal:
    import warnings

    from pymatgen.core import Structure

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rounding remarks, thousands of times
            structure = Structure.from_str(text, fmt="cif")
    except Exception as error:  # the parser raises whatever the text made it stumble over
        raise ValueError(f"not a readable CIF ({' '.join(str(error).split())[:200]})") from None
    return Crystal.from_structure(structure)


def _lattice(parameters: np.ndarray) -> np.ndarray:
    from pymatgen.core import Lattice

    try:
        return np.asarray(Lattice.from_parameters(*parameters).matrix)
    except Exception:
        raise ValueError(f"{parameters.tolist()} are not lengths and angles of a cell") from None
