"""One compilation cache for all runs of these tests, which compile the same few steps."""

from __future__ import annotations

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as cache


@pytest.fixture(scope="package", autouse=True)
def compilation_cache(tmp_path_factory):
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = [getattr(jax.config, name) for name in names]
    directory = tmp_path_factory.mktemp("xla")
    for name, value in zip(names, (str(directory), 0.0, -1)):
        jax.config.update(name, value)
    cache.reset_cache()
    yield directory
    for name, value in zip(names, before):
        jax.config.update(name, value)
    cache.reset_cache()
