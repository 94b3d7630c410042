"""MPTS-52: Materials Project crystals of at most 52 atoms, split by the year of their report."""

from xtalnet_jax.data.builders.base import CrystalBuilder


class Mpts52(CrystalBuilder):
    """27,380 / 5,000 / 8,096 crystals; the test set was reported last."""

    TITLE = "Materials Project crystals of at most 52 atoms, in the order of their discovery."
    URL = "https://github.com/jiaor17/DiffCSP/tree/main/data/mpts_52"
    LICENCE = "CC BY 4.0 (Materials Project); csv files MIT"
    CITATION = """@article{baird2024matbench,
  title={matbench-genmetrics: A Python library for benchmarking crystal structure generative
         models using time-based splits of Materials Project structures},
  author={Baird, Sterling G. and Sayeed, Hasan M. and Montoya, Joseph and Sparks, Taylor D.},
  journal={Journal of Open Source Software}, volume={9}, number={97}, pages={5618}, year={2024}}"""
    FILE = "{split}.csv"
