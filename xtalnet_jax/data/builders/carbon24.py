"""Carbon-24: carbon phases of 6 to 24 atoms, found by random search at 10 GPa."""

from xtalnet_jax.data.builders.base import CrystalBuilder
from xtalnet_jax.data.builders.mp20 import CDVAE_CITATION


class Carbon24(CrystalBuilder):
    """10,153 crystals in all, split 60:20:20; many occur more than once."""

    TITLE = "Carbon phases of 6 to 24 atoms per cell."
    URL = "https://github.com/txie-93/cdvae/tree/main/data/carbon_24"
    LICENCE = "MIT"
    CITATION = (
        CDVAE_CITATION
        + """
@misc{pickard2020airss,
  title={AIRSS data for carbon at 10GPa and the C+N+H+O system at 1GPa},
  author={Pickard, Chris J.}, year={2020}, doi={10.24435/materialscloud:2020.0026/v1}}"""
    )
    FILE = "{split}.csv"
