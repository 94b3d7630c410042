"""A built tfds data set as a `Source`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.sources import OwnPeaks, Record, Source


class TfdsSource(Source):
    """One split of a folder that a `builders.base.CrystalBuilder` wrote."""

    def __init__(self, path: str | Path, split: str | None = None):
        import tensorflow_datasets as tfds

        self.path = Path(path)
        try:
            splits = tfds.builder_from_directory(str(path)).info.splits
        except Exception as error:
            raise ValueError(f"{path} is not a readable tfds data set ({error})") from None
        if split is None and len(splits) == 1:
            split = next(iter(splits))
        if split not in splits:
            raise ValueError(
                f"{path} holds the splits {', '.join(splits)}: say which, not {split!r}"
            )
        self._split = split
        self._data: Any = None  # opened where it is used
        self._length = splits[split].num_examples

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> Record:
        if self._data is None:
            import tensorflow_datasets as tfds

            builder = tfds.builder_from_directory(str(self.path))
            self._data = builder.as_data_source(self._split)
        entry = self._data[i]
        crystal = Crystal(
            entry["atomic_numbers"].astype(np.int32), entry["frac_coords"], entry["lattice"]
        )
        peaks = None
        if len(entry["peaks"]):
            inv_d, strength = entry["peaks"].T
            peaks = OwnPeaks(inv_d, strength, entry["measured"])
        return Record(entry["id"].decode(), crystal, None, self._split, peaks)

    def _contents(self) -> list[Path]:
        return sorted(p for p in self.path.iterdir() if p.is_file())
