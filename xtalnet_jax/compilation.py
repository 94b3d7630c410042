"""The persistent compilation cache: a shape compiled once is not compiled again next time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$XTALNET_CACHE`` or the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("XTALNET_CACHE") or Path(home) / "xtalnet_jax")


def use_cache() -> None:
    """Let JAX keep compiled programs in `cache_dir`; without a writable folder nothing happens."""
    import jax

    folder = cache_dir() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
