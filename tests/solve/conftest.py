from pathlib import Path

import pytest

from tests.solve import tiny
from xtalnet_jax.solve.solver import Solver, load_solver


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of an untrained solver of the smallest size."""
    return tiny.write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def tiny_solver(tiny_weights: Path) -> Solver:
    return load_solver(str(tiny_weights))
