"""What the machine at hand does with work that never changes, so that tables of several compare.

    python -m benchmarks.machine

Machines that call themselves the same differ, and so does one from hour to hour. Two kinds of work:
matrix products, and one plain layer of CSPNet in the reference's own form (edge features gathered
and concatenated, messages added up by segment, float32), forward and gradient.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.inputs import clocked, in_fresh_process
from xtalnet_jax.models import pairs
from xtalnet_jax.models.cspnet import CSPLayer

MODULE = "benchmarks.machine"
PRODUCT = (4096, 512, 2048)
PLAIN_LAYERS = {"MP-20": (64, 10), "MOF": (4, 64)}
"""Crystals and atoms of each."""


def product_rate(dtype: str, repeats: int) -> float:
    """GFLOP/s of a product of this type that accumulates in float32."""
    m, k, n = PRODUCT
    one, other = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
    dot = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    return 2e-9 * m * k * n / clocked(lambda: dot(one, other), repeats).wall


def plain_layer_seconds(n_graph: int, n_node: int, repeats: int) -> float:
    """Forward and gradient of a `CSPLayer` on an edge list, 512 wide, 128 frequencies, float32."""
    width, num_freqs = 512, 128
    keys = jax.random.split(jax.random.key(0), 4)
    h = jax.random.normal(keys[0], (n_graph * n_node, width))
    coords = jax.random.uniform(keys[1], (n_graph * n_node, 3))
    cell = jax.random.normal(keys[2], (n_graph, 9))
    edges = pairs.complete_edges(n_graph, n_node)
    layer = CSPLayer(width, 6 * num_freqs)

    def listed(coords: jax.Array) -> pairs.EdgeList:
        return pairs.edge_list(coords, jnp.ones(len(coords), bool), *edges, num_freqs)

    @jax.jit
    def gradient(params: Any, h: jax.Array, coords: jax.Array) -> Any:
        def loss(params: Any, h: jax.Array) -> jax.Array:
            out: Any = layer.apply(params, h, cell, listed(coords))
            return (out**2).sum()

        return jax.grad(loss, (0, 1))(params, h)

    params = jax.jit(lambda: layer.init(keys[3], h, cell, listed(coords)))()
    return clocked(lambda: gradient(params, h, coords), repeats).wall


def measure(repeats: int) -> dict[str, float]:
    """All of it, in this process."""
    found = {f"{t} products, GFLOP/s": product_rate(t, repeats) for t in ("float32", "bfloat16")}
    for size, shape in PLAIN_LAYERS.items():
        name = f"plain layer of {size} size ({shape[0]} crystals of {shape[1]} atoms), ms"
        found[name] = 1e3 * plain_layer_seconds(*shape, repeats)
    return found


def note(repeats: int) -> str:
    """Measure in a fresh process; a sentence for the table of another benchmark."""
    found = in_fresh_process(MODULE, {"repeats": repeats})
    shown = "; ".join(f"{name}: {value:.0f}" for name, value in found.items())
    return f"Before this run the machine did (`python -m {MODULE}`): {shown}."


def main() -> None:
    """Measure one case for `note`, or print what was measured."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repeats", type=int, default=5, help="of which the median is taken")
    arguments.add_argument("--case", help=argparse.SUPPRESS)  # for `note`
    args = arguments.parse_args()
    repeats = json.loads(args.case)["repeats"] if args.case else args.repeats
    found = measure(repeats)
    json.dump(found, sys.stdout, indent=None if args.case else 1)
    print()


if __name__ == "__main__":
    main()
