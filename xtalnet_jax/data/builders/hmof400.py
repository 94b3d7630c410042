"""hMOF-400: hypothetical metal-organic frameworks of at most 400 atoms, with patterns."""

from xtalnet_jax.data.builders.base import CrystalBuilder
from xtalnet_jax.data.builders.hmof100 import CITATION


class Hmof400(CrystalBuilder):
    """As hMOF-100, but up to 400 atoms; the files have the same names, so use another folder."""

    TITLE = "Hypothetical metal-organic frameworks of at most 400 atoms, with powder patterns."
    URL = "https://zenodo.org/records/13629658"
    LICENCE = "as stated in the Zenodo record"
    CITATION = CITATION
    FILE = "{split}.lmdb"
    OPTIONS = CrystalBuilder.OPTIONS._replace(max_atoms=400)
