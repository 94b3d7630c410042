"""What several model tests share: the reference's golden numbers in our containers, `stir`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.crystals.lattice import matrix_from_parameters
from xtalnet_jax.pxrd.pattern import PeakBatch


class Batch(NamedTuple):
    crystals: CrystalBatch
    peaks: PeakBatch
    mask: np.ndarray  # [n_graph, n_node]


def dense(values: np.ndarray, mask: np.ndarray) -> jax.Array:
    """Put a flat list of atoms into rows; padding is 0."""
    out = np.zeros((*mask.shape, *values.shape[1:]), values.dtype)
    out[mask] = values
    return jnp.asarray(out)


def load_batch(golden: Path, name: str, dtype: Any) -> Batch:
    file = np.load(golden / f"inputs_{name}.npz")
    n = file["num_atoms"]
    mask = np.arange(n.max())[None] < n[:, None]
    lengths, angles = (jnp.asarray(file[k], dtype) for k in ("lengths", "angles"))
    crystals = CrystalBatch(
        dense(file["atom_types"], mask),
        dense(file["frac_coords"], mask).astype(dtype),
        matrix_from_parameters(lengths, angles),
    )
    peaks = PeakBatch(
        jnp.asarray(file["peak_id"]),
        jnp.asarray(file["peak_intensity"], dtype),
        jnp.asarray(file["peak_mask"]),
        jnp.zeros((len(n), 2), dtype),
    )
    return Batch(crystals, peaks, mask)


def state_dict(golden: Path, tag: str) -> dict[str, np.ndarray]:
    """Regenerate the reference's weights (tag like ``narrow_cpcp``) and check their hash."""
    spec = importlib.util.spec_from_file_location("weights", golden / "procedural_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (golden / "README.md").read_text()
    block = re.search(rf"### {tag.replace('_', ' ')}\n```\n(.*?)```", text, re.DOTALL).group(1)
    state = {}
    for line in block.strip().splitlines():
        name, shape = line.split(" ", 1)
        if "_scheduler." in name:  # tables, no weights
            continue
        state[name] = module.procedural(name, tuple(int(n) for n in re.findall(r"\d+", shape)))
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].tobytes())
    expected = json.loads((golden / "summary.json").read_text())[tag]["sha256_of_params"]
    assert digest.hexdigest() == expected
    return state


def relative(ours: Any, theirs: np.ndarray) -> float:
    """Largest difference over the largest value."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def stir(params: Any, amount: float = 0.1) -> Any:
    """Move every parameter away from its (often symmetric) initial value."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    moved = [p + amount * rng.standard_normal(p.shape).astype(np.float32) for p in leaves]
    return jax.tree.unflatten(structure, moved)


def jitted(model: Any, method: str | None = None) -> Callable[..., Any]:
    """``model.apply`` of a method as one program: operation by operation each would be compiled."""
    return jax.jit(lambda params, *args, **more: model.apply(params, *args, method=method, **more))
