"""Graphs of crystals: the same atoms and pairs in both layouts, padding that stays apart."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from xtalnet_jax.crystals import graph as g
from xtalnet_jax.crystals.crystal import Crystal, stack_crystals


def crystals() -> list[Crystal]:
    rng = np.random.default_rng(0)
    return [
        Crystal(
            rng.integers(1, 90, n), rng.random((n, 3)).astype(np.float32), np.eye(3) * (n + 2.0)
        )
        for n in (3, 1, 5)
    ]


def mean_message(graphs: jraph.GraphsTuple) -> np.ndarray:
    """For each node the mean over its pairs of a function of both atoms."""
    x, z = graphs.nodes["frac_coords"], graphs.nodes["atomic_numbers"]
    i, j = graphs.receivers, graphs.senders
    message = jnp.sin(x[j] - 2 * x[i]).sum(-1) * z[j]
    count = jraph.segment_sum(jnp.ones_like(message), i, len(x))
    return jraph.segment_sum(message, i, len(x)) / jnp.maximum(count, 1)


def by_hand(crystal: Crystal) -> np.ndarray:
    x = crystal.frac_coords
    pairs = np.sin(x[None] - 2 * x[:, None]).sum(-1) * crystal.atomic_numbers[None]
    return pairs.mean(1)


def test_both_layouts_hold_all_pairs_and_nothing_else():
    some = crystals()
    expected = np.concatenate([by_hand(c) for c in some])
    for graphs in (
        jax.jit(g.to_graphs)(stack_crystals(some, 6, 4)),
        g.pad_graphs(some, 16, 64, 5),
    ):
        real = np.asarray(graphs.nodes["atomic_numbers"]) > 0
        np.testing.assert_allclose(mean_message(graphs)[real], expected, rtol=1e-4, atol=1e-4)
        assert int(graphs.n_node.sum()) == len(real)
        assert int(graphs.n_edge.sum()) == len(graphs.senders)
        np.testing.assert_array_equal(graphs.n_edge[:3], [9, 1, 25])
        # an edge never joins a real atom to padding, or two crystals
        owner = np.repeat(np.arange(len(graphs.n_node)), np.asarray(graphs.n_node))
        assert (real[graphs.senders] == real[graphs.receivers]).all()
        np.testing.assert_array_equal(owner[graphs.senders], owner[graphs.receivers])


def test_unbatch_returns_the_crystals():
    some = crystals()
    for graphs in (g.to_graphs(stack_crystals(some, 6, 4)), g.pad_graphs(some, 20, 64, 8)):
        back = g.unbatch_graphs(graphs)
        assert len(back) == 3
        for one, other in zip(some, back):
            np.testing.assert_array_equal(one.atomic_numbers, other.atomic_numbers)
            np.testing.assert_allclose(one.frac_coords, other.frac_coords, atol=1e-6)
            np.testing.assert_allclose(one.lattice, other.lattice)


def test_sizes_are_those_of_the_budget():
    graphs = g.pad_graphs(crystals(), 16, 64, 5)
    assert (len(graphs.senders), len(graphs.n_node)) == (64, 5)
    assert len(graphs.nodes["atomic_numbers"]) == 16
    assert jraph.get_number_of_padding_with_graphs_graphs(graphs) == 2


def test_crystals_beyond_the_budget_are_named():
    with pytest.raises(ValueError, match="number 2 with 5 atoms"):
        g.pad_graphs(crystals(), 5, 64, 5)
    with pytest.raises(ValueError, match="number 2 with 5 atoms"):
        g.pad_graphs(crystals(), 50, 24, 5)
    with pytest.raises(ValueError, match="10 nodes, 35 edges, 4 graphs"):
        g.pad_graphs(crystals(), 9, 64, 5)
    with pytest.raises(ValueError, match="3 crystals need"):
        g.pad_graphs(crystals(), 50, 640, 3)
