"""What all builders share: features, splits from files, packing, and the TensorFlow-free recipe."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.data.packing import CHUNK, PackOptions, pack_records
from xtalnet_jax.data.sources import SPLITS, Source, open_source

_log = logging.getLogger(__name__)

FILE_FORMAT = "array_record"  # the only one that needs no TensorFlow


class CrystalBuilder(  # type: ignore[call-arg]  # its __init_subclass__ takes it
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Crystals in standard form with their powder lines, and peaks of their own patterns.

    A data set says where it comes from and what its files are called; records that cannot be read
    or believed are logged and left out.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Standard cells, lines up to 1/d = 1 per angstrom."}  # noqa: RUF012
    TITLE: str
    URL: str
    LICENCE: str
    CITATION: str
    FILE: str  # what the file of a split is called in manual_dir, with "{split}" for the split
    OPTIONS = PackOptions()

    @property
    def MANUAL_DOWNLOAD_INSTRUCTIONS(self) -> str:
        """What to download and where to put it, in the words tfds shows."""
        names = ", ".join(self.FILE.format(split=split) for split in SPLITS)
        return f"put {names} of {self.URL} into manual_dir"

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        pairs = features.Tensor(shape=(None, 2), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,  # the order of the files; training shuffles for itself
            description=self.TITLE,
            homepage=self.URL,
            license=self.LICENCE,
            citation=self.CITATION,
            features=features.FeaturesDict(
                {
                    "id": features.Text(),
                    "atomic_numbers": features.Tensor(shape=(None,), dtype=np.uint8),
                    "frac_coords": features.Tensor(shape=(None, 3), dtype=np.float32),
                    "lattice": features.Tensor(shape=(3, 3), dtype=np.float32),  # rows, angstrom
                    "lines": pairs,  # 1/d in 1/angstrom, strength
                    "peaks": pairs,  # the same of the set's own pattern; none where it has none
                    "measured": features.Tensor(shape=(2,), dtype=np.float32),  # 1/d
                }
            ),
        )

    def _sources(self, manual_dir: Path) -> dict[str, Source]:
        """The sources of the splits that are there."""
        paths = {split: manual_dir / self.FILE.format(split=split) for split in SPLITS}
        return {split: open_source(p, split) for split, p in paths.items() if p.exists()}

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        manual_dir = Path(dl_manager.manual_dir)
        sources = self._sources(manual_dir)
        if not sources:
            raise ValueError(
                f"{manual_dir} holds no files of {self.name}: {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        return {split: self._generate_examples(source) for split, source in sources.items()}

    def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
        for start in range(0, len(source), CHUNK):
            rows = range(start, min(start + CHUNK, len(source)))
            records = ((source.name(i), lambda i=i: source[i]) for i in rows)
            packed, bad = pack_records(records, self.OPTIONS)
            for entry in bad:
                _log.warning("%s left out: %s", *entry)
            # The place is the key: names are not unique in every set, and the order is kept.
            yield from ((start + k, example(packed, k)) for k in range(packed.num_crystals))


def example(packed: PackedSet, k: int) -> dict[str, Any]:
    """Crystal ``k`` as the features of `CrystalBuilder`."""
    numbers, frac, lattice = packed.crystal(k)
    return {
        "id": str(packed.id[k]),
        "atomic_numbers": numbers.astype(np.uint8),
        "frac_coords": frac,
        "lattice": lattice,
        "lines": _pairs(packed.lines_inv_d[k], packed.lines_strength[k]),
        "peaks": _pairs(packed.peaks_inv_d[k], packed.peaks_strength[k]),
        "measured": packed.measured[k],
    }


def is_builder(thing: Any, module: str) -> bool:
    """Whether ``thing`` is the builder that ``module`` defines."""
    is_class = isinstance(thing, type) and issubclass(thing, CrystalBuilder)
    return is_class and thing.__module__ == module


def build(builder_class: type[CrystalBuilder], manual_dir: Path, data_dir: Path) -> Path:
    """Write the data set, unless it is there, and return its folder."""
    tfds.disable_progress_bar()
    builder = builder_class(data_dir=str(data_dir), file_format=FILE_FORMAT)
    config = tfds.download.DownloadConfig(manual_dir=str(manual_dir))
    builder.download_and_prepare(download_config=config, file_format=FILE_FORMAT)
    return Path(builder.data_dir)


def _pairs(position: np.ndarray, strength: np.ndarray) -> np.ndarray:
    real = position > 0
    return np.stack([position[real], strength[real]], -1).astype(np.float32)
