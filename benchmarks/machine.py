"""What the machine at hand does with work that never changes, so that tables of several compare.

    python -m benchmarks.machine

Machines that call themselves the same differ, and so does one from hour to hour. Two kinds of work:
matrix products, and one layer of CSPNet as the paper writes it (edge features gathered and
concatenated, messages added up by segment, float32), forward and gradient. Nothing of it is taken
from the package, so that it stays what it is.
"""

from __future__ import annotations

import argparse
import json
import sys

import jax
import jax.numpy as jnp

from benchmarks.inputs import clocked, in_fresh_process

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
    """Forward and gradient of a plain layer, 512 wide, 128 frequencies, float32."""
    width, frequencies, n_atom = 512, 2 * jnp.pi * jnp.arange(128.0), n_graph * n_node
    keys = jax.random.split(jax.random.key(0), 7)
    h = jax.random.normal(keys[0], (n_atom, width))
    coords = jax.random.uniform(keys[1], (n_atom, 3))
    cell = jax.random.normal(keys[2], (n_graph, 9))
    atom = jnp.arange(n_atom).reshape(n_graph, n_node)
    receivers = jnp.repeat(atom, n_node, 1).reshape(-1)
    senders = jnp.tile(atom, (1, n_node)).reshape(-1)
    shapes = (2 * width + 9 + 6 * 128, width), (width, width), (2 * width, width), (width, width)
    kernels = [jax.random.normal(key, n) / n[0] ** 0.5 for key, n in zip(keys[3:], shapes)]

    def loss(h: jax.Array, kernels: list[jax.Array], coords: jax.Array) -> jax.Array:
        phase = (coords[senders] - coords[receivers])[..., None] * frequencies
        waves = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], -1).reshape(len(phase), -1)
        x = jax.nn.standardize(h)
        message = jnp.concatenate([x[receivers], x[senders], cell[receivers // n_node], waves], -1)
        message = jax.nn.silu(jax.nn.silu(message @ kernels[0]) @ kernels[1])
        mean = jax.ops.segment_sum(message, receivers, n_atom) / n_node
        node = jax.nn.silu(jnp.concatenate([x, mean], -1) @ kernels[2])
        return ((h + jax.nn.silu(node @ kernels[3])) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    return clocked(lambda: gradient(h, kernels, coords), repeats).wall


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
