"""Compiled programs: kept on disk for the next time, forgotten before memory maps run out."""

from __future__ import annotations

import ctypes
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


def return_memory() -> None:
    """Give back to the system what compiling has used and freed, as glibc would keep it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return


def make_room(share: float = 0.6) -> bool:
    """Forget all compiled programs if they hold more than a share of the memory maps allowed.

    On CPUs every program holds many small maps, of which Linux allows a process only so many
    (``vm.max_map_count``); a process that compiled hundreds of shapes would be ended by "Cannot
    allocate memory". Programs in the persistent cache come back quickly.

    Returns:
        Whether programs were forgotten; never where there is no such limit.
    """
    try:
        allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
        with open("/proc/self/maps", "rb") as file:
            used = sum(1 for _ in file)
    except OSError:
        return False
    if used < share * allowed:
        return False
    import jax

    jax.clear_caches()
    return True
