"""Where weights are found: bundled pairs, run folders, single files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xtalnet_jax.pretrained.safetensors_io import load_safetensors, save_safetensors
from xtalnet_jax.types import Params

BUNDLED = Path(__file__).parent / "weights"
"""Folder of the weights that come with the package, one sub-folder for each named pair."""

FILE_NAME = "weights.safetensors"
"""What a training run leaves in its folder."""

save_weights = save_safetensors


def load_weights(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Read ``(params, recipe)`` from a weights file or from the folder of a finished run.

    Raises:
        ValueError: there are no weights.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there are no weights at {file}; finish the run that makes them first")
    return load_safetensors(file)


def fingerprint(params: Params) -> str:
    """Return a hash of the names and values of parameters, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def solver_files(name: str | Path) -> tuple[Path, Path, Path]:
    """Return CPCP weights, generator weights and ranker of a bundled name or a folder.

    A folder without ``ranker.json`` gets that of ``default``, a bundled one its towers too.

    Raises:
        ValueError: neither a bundled name nor a folder that holds both weight files.
    """
    bundled = sorted(p.name for p in BUNDLED.iterdir() if p.is_dir()) if BUNDLED.is_dir() else []
    is_bundled = str(name) in bundled
    folder = BUNDLED / name if is_bundled else Path(name)
    towers = folder / "cpcp.safetensors"
    if is_bundled and not towers.is_file():
        towers = BUNDLED / "default" / towers.name
    files = towers, folder / "generator.safetensors"
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise ValueError(
            f"no weights {str(name)!r}: {' and '.join(missing)} not found in {folder}; bundled are "
            f"{', '.join(bundled) or 'none'}"
        )
    own = folder / "ranker.json"
    return *files, own if own.is_file() else BUNDLED / "default" / "ranker.json"
