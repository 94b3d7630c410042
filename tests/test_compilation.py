import os
import platform
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_memory_that_was_freed_goes_back_to_the_system():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    blocks = [bytearray(60_000) for _ in range(3000)]
    del blocks[:-1]  # the last one is at the end of the heap, which can therefore not shrink
    before = resident()
    compilation.return_memory()
    assert before - resident() > 100_000_000
