"""hMOF-100: hypothetical metal-organic frameworks of at most 100 atoms, with patterns."""

from xtalnet_jax.data.builders.base import CrystalBuilder

CITATION = """@article{lai2025xtalnet,
  title={End-to-End Crystal Structure Prediction from Powder X-Ray Diffraction},
  author={Lai, Qingsi and others}, journal={Advanced Science}, year={2025}}"""


class Hmof100(CrystalBuilder):
    """73,332 / 9,117 / 9,081 crystals; patterns: Cu K-alpha, 3 to 30 degrees, 0.02 degree steps."""

    TITLE = "Hypothetical metal-organic frameworks of at most 100 atoms, with powder patterns."
    URL = "https://zenodo.org/records/13629658"
    LICENCE = "as stated in the Zenodo record"
    CITATION = CITATION
    FILE = "{split}.lmdb"
    OPTIONS = CrystalBuilder.OPTIONS._replace(max_atoms=100)
