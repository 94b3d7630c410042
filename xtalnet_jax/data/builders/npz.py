"""Any crystals in the compact npz form."""

from xtalnet_jax.data.builders.base import CrystalBuilder


class Npz(CrystalBuilder):
    """``train.npz``, ``val.npz``, ``test.npz``; see `sources.NpzSource` for their arrays."""

    TITLE = "Crystals from npz files."
    URL = "your own files"
    LICENCE = "that of the files"
    CITATION = ""
    FILE = "{split}.npz"
