"""The layouts of pairs against each other: one network, the same crystals, in turn.

    python -m benchmarks.layouts

Forward pass and gradient of a CSPNet (512 wide, 128 frequencies) on random crystals, in layouts of
`xtalnet_jax.models.pairs`. Every repeat goes through all of them, so that what else the machine
does falls on all alike; medians. ``difference`` is the largest of the atom features, which are
about 1, to the first layout.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from benchmarks.inputs import parser, write
from xtalnet_jax.models.cspnet import CSPNet

SHAPES = ((16, 8), (32, 12), (14, 16), (4, 72), (1, 200))
"""Crystals and atoms in each, of the batches."""


def functions(net: CSPNet, params: Any, inputs: tuple[jax.Array, ...]) -> dict[str, Callable]:
    """Compile the network and its gradient by parameters and atom features."""
    h, *rest = inputs

    def out(params: Any, h: jax.Array) -> jax.Array:
        return net.apply(params, h, *rest)

    def loss(params: Any, h: jax.Array) -> jax.Array:
        return (out(params, h) ** 2).sum()

    wanted = {"forward": out, "gradient": jax.value_and_grad(loss, (0, 1))}
    compiled = {k: jax.jit(f).lower(params, h).compile() for k, f in wanted.items()}
    return {k: lambda f=f: f(params, h) for k, f in compiled.items()}


def compare(
    shape: tuple[int, int], layouts: list[str], repeats: int, **fields: Any
) -> list[dict[str, Any]]:
    """Return a row for every layout."""
    n_graph, n_node = shape
    keys = jax.random.split(jax.random.key(0), 3)
    nets = {layout: CSPNet(**fields, layout=layout) for layout in layouts}
    width = next(iter(nets.values())).width
    inputs = (
        jax.random.normal(keys[0], (n_graph, n_node, width)),
        jax.random.uniform(keys[1], (n_graph, n_node, 3)),
        jnp.ones((n_graph, 9)),
        jnp.ones((n_graph, n_node), bool),
    )
    params = jax.jit(nets[layouts[0]].init)(keys[2], *inputs)
    made = {layout: functions(net, params, inputs) for layout, net in nets.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for repeat in range(repeats + 1):  # the first is a warm-up
        for layout, calls in made.items():
            for name, call in calls.items():
                start = time.perf_counter()
                jax.block_until_ready(call())
                if repeat:
                    seconds.setdefault((layout, name), []).append(time.perf_counter() - start)
    rows, outputs = [], {layout: calls["forward"]() for layout, calls in made.items()}
    for layout in layouts:
        ms = {name: 1e3 * float(np.median(seconds[layout, name])) for name in made[layout]}
        difference = float(jnp.abs(outputs[layout] - outputs[layouts[0]]).max())
        size = {"crystals": n_graph, "atoms": n_node, "layout": layout}
        rows.append({**size, **{f"{k}_ms": v for k, v in ms.items()}, "difference": difference})
    return rows


def main() -> None:
    """Compare at all sizes and write the table."""
    arguments: argparse.ArgumentParser = parser(__doc__, "results/layouts.json")
    arguments.add_argument("--layers", type=int, default=2)
    arguments.add_argument("--dtype", default="float32")
    arguments.add_argument("--layouts", nargs="+", default=["sparse", "offsets", "square"])
    args = arguments.parse_args()
    rows, notes = [], [machine.note(args.repeats)]
    for shape in SHAPES:
        rows += compare(shape, args.layouts, args.repeats, layers=args.layers, dtype=args.dtype)
    notes.append(f"{args.layers} layers, products in {args.dtype}.")
    write(args.out, "Layouts of pairs", rows, notes)


if __name__ == "__main__":
    main()
