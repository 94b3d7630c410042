import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from xtalnet_jax import compilation

MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="the system has no list of memory maps")
def test_programs_are_forgotten_only_when_there_are_too_many():
    double = jax.jit(lambda x: 2 * x)
    double(jnp.ones(3))
    assert not compilation.make_room()
    assert double._cache_size() == 1
    assert compilation.make_room(share=0.0)
    assert double._cache_size() == 0
    assert double(jnp.ones(3)).tolist() == [2, 2, 2]


@pytest.mark.skipif(sys.platform == "linux", reason="Linux has the limit")
def test_without_a_limit_nothing_is_forgotten():
    assert not compilation.make_room(share=0.0)


def test_memory_that_was_freed_goes_back_to_the_system():
    """Or nothing happens, where the C library cannot; the arrays of today stay what they are."""
    kept = jnp.arange(5)
    compilation.return_memory()
    assert kept.tolist() == [0, 1, 2, 3, 4]
