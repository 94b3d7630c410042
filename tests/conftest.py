"""Strict numerics and the shared reference data, for every test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from xtalnet_jax import compilation

QUICK = "--xla_cpu_use_fusion_emitters=false"
"""XLA's older emitter, which takes much less time than the newer to turn a program into code."""


def xla_knows(flag: str) -> bool:
    """Whether this version of XLA has a flag; one that it does not know ends the process."""
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, check=False)
    return done.returncode == 0


# XLA reads it when it is first used.
if QUICK not in os.environ.get("XLA_FLAGS", "") and xla_knows(QUICK):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()

jax.config.update("jax_numpy_rank_promotion", "raise")
compilation.use_cache()

SHARED = Path(os.environ.get("XTALNET_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True, scope="module")
def room_for_programs() -> None:
    """One process compiles thousands of programs here, and Linux would end it at some number."""
    compilation.make_room(share=0.4)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Most programs here run once, for less time than XLA would take to optimise them."""
    quick = request.node.get_closest_marker("optimised") is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))  # in processes started here
        jax.config.update("jax_disable_most_optimizations", quick)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and structures; tests that need it are skipped without it."""
    if not (SHARED / "golden").is_dir():
        if os.environ.get("XTALNET_REQUIRE_SHARED"):
            pytest.fail(f"the reference data must be at {SHARED}")
        pytest.skip(f"the reference data are not at {SHARED} (set XTALNET_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"


@pytest.fixture(scope="session")
def structures(shared: Path) -> Path:
    return shared / "data" / "structures"
