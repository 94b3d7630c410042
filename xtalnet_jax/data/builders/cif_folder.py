"""Any folder of CIF files."""

from pathlib import Path

from xtalnet_jax.data.builders.base import CrystalBuilder
from xtalnet_jax.data.sources import CifFolderSource, Source


class CifFolder(CrystalBuilder):
    """Folders ``train``, ``val``, ``test`` of CIF files; without such folders, all are train."""

    TITLE = "Crystals from CIF files."
    URL = "your own files"
    LICENCE = "that of the files"
    CITATION = ""
    FILE = "{split}"

    def _sources(self, manual_dir: Path) -> dict[str, Source]:
        split = super()._sources(manual_dir)
        if split or not any(manual_dir.rglob("*.cif")):
            return split
        return {"train": CifFolderSource(manual_dir, "train")}
