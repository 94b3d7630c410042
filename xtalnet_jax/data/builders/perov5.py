"""Perov-5: perovskites of 5 atoms, most of them hypothetical."""

from xtalnet_jax.data.builders.base import CrystalBuilder
from xtalnet_jax.data.builders.mp20 import CDVAE_CITATION


class Perov5(CrystalBuilder):
    """18,928 crystals in all, split 60:20:20 by the authors of CDVAE."""

    TITLE = "Perovskites ABX3 with 5 atoms per cell, of 56 elements."
    URL = "https://github.com/txie-93/cdvae/tree/main/data/perov_5"
    LICENCE = "MIT"
    CITATION = (
        CDVAE_CITATION
        + """
@article{castelli2012new,
  title={New cubic perovskites for one- and two-photon water splitting using the computational
         materials repository},
  author={Castelli, Ivano E. and others}, journal={Energy \\& Environmental Science}, volume={5},
  pages={9034--9043}, year={2012}}"""
    )
    FILE = "{split}.csv"
