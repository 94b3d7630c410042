"""MP-20: Materials Project crystals of at most 20 atoms, near the convex hull."""

from xtalnet_jax.data.builders.base import CrystalBuilder

CDVAE_CITATION = """@inproceedings{xie2022crystal,
  title={Crystal Diffusion Variational Autoencoder for Periodic Material Generation},
  author={Xie, Tian and Fu, Xiang and Ganea, Octavian-Eugen and Barzilay, Regina and
          Jaakkola, Tommi}, booktitle={ICLR}, year={2022}}"""


class Mp20(CrystalBuilder):
    """27,136 / 9,047 / 9,046 crystals, as split by the authors of CDVAE."""

    TITLE = "Materials Project crystals of at most 20 atoms per primitive cell."
    URL = "https://github.com/txie-93/cdvae/tree/main/data/mp_20"
    LICENCE = "CC BY 4.0 (Materials Project); csv files MIT"
    CITATION = CDVAE_CITATION
    FILE = "{split}.csv"
