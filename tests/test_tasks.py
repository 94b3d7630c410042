"""Recipes become tasks; padding, keys and neighbours do not leak."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.solve import tiny
from xtalnet_jax import tasks
from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.crystals.sizes import Sizes
from xtalnet_jax.data.examples import Example
from xtalnet_jax.pxrd.pattern import CU_KALPHA, Lines, PeakBatch, inv_d_from_two_theta

VARIANTS = {
    "cpcp": ("", "cpu", "smoke"),
    "flow": ("", "cpu", "smoke", "cpu,transformer"),
    "ccsg": ("", "cpu", "smoke"),
    "cpcp_hmof100": ("", "smoke"),
    "ccsg_hmof100": ("", "add", "unfrozen", "smoke"),
}
LARGE = {"cpcp_hmof400": ("", "smoke"), "ccsg_hmof400": ("", "add", "unfrozen", "smoke")}
FRAMEWORKS = {
    "cpcp_qmof": ("", "cpu", "graph", "cpu,graph", "smoke"),
    "flow_qmof": ("", "cpu", "smoke"),
}
"""Recipes that change nothing but sizes and data: their losses are those of the recipes above."""
RECIPES = VARIANTS | LARGE | FRAMEWORKS


def module(name: str) -> Any:
    return importlib.import_module(f"configs.{name}")


def setup(name: str) -> tuple[Any, Any, Any]:
    recipe = tiny.recipe(module(name))
    return tasks.task_from_config(recipe), tiny.parameters(module(name)), tiny.example(module(name))


def padded(example: Example, more: int = 3) -> Example:
    """The same batch with empty crystals behind, as `data.examples` makes them."""
    crystals = CrystalBatch(
        np.pad(example.crystals.atomic_numbers, ((0, more), (0, 0))),
        np.pad(example.crystals.frac_coords, ((0, more), (0, 0), (0, 0))),
        np.concatenate(
            [example.crystals.lattice, np.tile(np.eye(3, dtype="f")[None], (more, 1, 1))]
        ),
    )
    lines = Lines(*(np.pad(x, ((0, more), (0, 0))) for x in example.lines))
    return Example(crystals, lines, np.pad(example.index, (0, more), constant_values=-1))


# Recipes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "arg"), [(n, a) for n, args in RECIPES.items() for a in args])
def test_every_recipe_builds_a_task(name, arg):
    config = module(name).get_config(arg)
    config = tasks.with_statistics(config, np.tile(np.eye(3) * 4, (2, 1, 1)), np.array([2, 3]))
    task = tasks.task_from_config(config)
    assert task.name == name.split("_")[0]
    from xtalnet_jax.training.config import complete_config

    complete_config(config.train)


@pytest.mark.parametrize("name", RECIPES)
def test_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match="unknown variant 'tiny'"):
        module(name).get_config("tiny")


@pytest.mark.parametrize("name", LARGE)
def test_recipes_for_large_cells_take_pairs_in_blocks(name):
    config = module(name).get_config("")
    assert config.model.network.chunk * max(config.data.num_atoms_buckets) < 10_000
    assert max(config.data.num_atoms_buckets) == 400
    assert module(name).get_config("smoke").model.network.chunk == 1


def test_unknown_task_is_refused():
    config = module("cpcp").get_config("smoke")
    config.task = "diffusion"
    with pytest.raises(ValueError, match="task is 'diffusion'"):
        tasks.task_from_config(config)


def test_flow_without_statistics_says_what_to_do():
    with pytest.raises(ValueError, match="no lattice_stats yet"):
        tasks.task_from_config(module("flow").get_config("smoke"))


def test_statistics_are_written_once():
    lattices, sizes = np.tile(np.eye(3) * 4, (2, 1, 1)), np.array([2, 3])
    first = tasks.with_statistics(module("flow").get_config("smoke"), lattices, sizes)
    assert tasks.with_statistics(first, lattices * 2, sizes) is first
    cpcp = module("cpcp").get_config("smoke")
    assert tasks.with_statistics(cpcp, lattices, sizes) is cpcp


def test_own_patterns_are_missed_where_there_are_none():
    config = tiny.recipe(module("cpcp_hmof100"))
    config.pattern.source = "own"
    task = tasks.task_from_config(config)
    with pytest.raises(ValueError, match=r"pattern.source='own'.*has none"):
        task.init(jax.random.key(0), tiny.example(module("cpcp_hmof100")))


# Losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_finite_and_reach_every_parameter(name):
    task, params, example = setup(name)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        return task.loss(params, jax.random.key(1), example, True, None)

    (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.isfinite(value)
    assert value > 0
    assert all(np.isfinite(m) for m in metrics.values())
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    assert all(np.isfinite(g).all() for _, g in flat)
    # Initial zeros may hide the first gradient of what feeds them; a whole dead tower may not.
    alive = np.mean([bool(np.abs(g).max() > 0) for _, g in flat])
    assert alive > 0.5
    encoder = [g for path, g in flat if "pxrd_encoder" in jax.tree_util.keystr(path)]
    assert any(np.abs(g).max() > 0 for g in encoder)


@pytest.mark.parametrize("name", ["cpcp", "flow", "ccsg"])
def test_a_batch_of_mixed_sizes_has_the_loss_and_gradients_of_one_padded_batch(name):
    task, params, example = setup(name)
    count = np.asarray(example.crystals.num_atoms)
    order = np.argsort(count, kind="stable")
    assert count.min() < count.max()
    half = len(order) // 2
    sizes = Sizes((half, len(order) - half), (int(count[order[half - 1]]), int(count.max())))
    one = jax.tree.map(lambda x: np.asarray(x)[order], example)
    largest = one.crystals.atomic_numbers.shape[1]
    assert sizes.num_nodes[0] < sizes.num_nodes[1] <= largest

    @jax.jit
    def loss(params: Any, batch: Any) -> jax.Array:
        return task.loss(params, jax.random.key(2), batch, True, None)[0]

    value, grads = jax.value_and_grad(loss)(params, one)
    mixed_value, mixed_grads = jax.value_and_grad(loss)(params, one._replace(sizes=sizes))
    assert mixed_value == pytest.approx(float(value), rel=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(mixed_grads)):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(np.abs(a).max())))


@pytest.mark.parametrize(("name", "train"), [("cpcp", True), ("flow", True), ("ccsg", False)])
def test_empty_crystals_change_neither_loss_nor_gradients(name, train):
    task, params, example = setup(name)

    @jax.jit
    def loss(params: Any, batch: Any) -> jax.Array:
        return task.loss(params, jax.random.key(2), batch, train, None)[0]

    value, grads = jax.value_and_grad(loss)(params, example)
    wide_value, wide_grads = jax.value_and_grad(loss)(params, padded(example))
    assert wide_value == pytest.approx(float(value), rel=1e-4)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wide_grads)):
        np.testing.assert_allclose(a, b, atol=1e-3 * max(1.0, float(np.abs(a).max())))


def test_evaluation_of_cpcp_is_deterministic_and_training_is_not():
    task, params, example = setup("cpcp")
    loss = jax.jit(task.loss, static_argnums=(3, 4))
    first, second = (loss(params, jax.random.key(k), example, False, None)[0] for k in (0, 1))
    assert first == second
    first, second = (loss(params, jax.random.key(k), example, True, None)[0] for k in (0, 1))
    assert first != second


# Patterns -----------------------------------------------------------------------------------------


def peaks_at(two_theta: list[float]) -> PeakBatch:
    position = inv_d_from_two_theta(np.array([two_theta]), CU_KALPHA).astype(np.float32)
    mask = np.ones(position.shape, bool)
    return PeakBatch(position, np.ones_like(position), mask, np.array([[0.05, 0.9]], np.float32))


def test_form_of_positions():
    inv_d = module("cpcp").get_config("smoke")
    grid = module("cpcp_hmof100").get_config("smoke")
    peaks = peaks_at([2.0, 3.0, 3.02, 20.0, 43.94, 43.98])
    # Trained on varied ranges: it sees them all.
    assert tasks.to_form(peaks, inv_d) is peaks
    # Trained on 5 to 90 degrees alone: lines below are dropped, and that range is what it is told.
    copper = ((CU_KALPHA, 0.0, 1.0),)
    inv_d.pattern.effects.update(start=(5.0, 5.0), end=(90.0, 90.0), radiations=copper)
    known = tasks.to_form(peaks, inv_d)
    np.testing.assert_array_equal(known.mask[0], [False, False, False, True, True, True])
    np.testing.assert_array_equal(known.position[0, 3:], peaks.position[0, 3:])
    np.testing.assert_allclose(known.measured[0], [0.05658, 0.91722], rtol=1e-4)
    on_grid = tasks.to_form(peaks, grid)
    np.testing.assert_array_equal(on_grid.mask[0], [False, True, True, True, True, False])
    np.testing.assert_array_equal(on_grid.position[0], [0, 0, 1, 850, 2047, 0])
    np.testing.assert_array_equal(on_grid.intensity[0], [0, 1, 1, 1, 1, 0])


def test_padded_peaks_stay_padded_on_the_grid():
    peaks = peaks_at([20.0, 25.0])
    peaks = peaks._replace(mask=np.array([[True, False]]), position=peaks.position * [[1, 0]])
    on_grid = tasks.to_form(peaks, module("cpcp_hmof100").get_config("smoke"))
    np.testing.assert_array_equal(on_grid.mask, [[True, False]])


def test_clean_effects_keep_the_instrument_only():
    pattern = module("cpcp").get_config("").pattern
    noisy, clean = tasks.effects_from_config(pattern), tasks.clean_effects(pattern)
    assert noisy.num_bins == clean.num_bins == 2126
    assert clean == type(clean).clean(num_bins=2126)
    assert noisy != clean
    paper = tasks.clean_effects(module("cpcp_qmof").get_config("cpu").pattern)
    assert paper == type(clean).clean(num_bins=1351, start=(3.0, 3.0), end=(30.0, 30.0))


# Generator ----------------------------------------------------------------------------------------


def generator_case(name: str) -> tuple[tasks.Generator, Any, Any, jax.Array]:
    recipe, params = tiny.recipe(module(name)), tiny.parameters(module(name))
    made = tasks.make_generator(recipe)
    peaks = tasks.peaks_from_lines(
        None, jax.tree.map(lambda x: jnp.asarray(x[:3]), tiny.example(module(name)).lines),
        tasks.clean_effects(recipe.pattern), recipe.pattern.num_peaks,
    )  # fmt: skip
    numbers = jnp.array([[14, 14, 0, 0], [11, 17, 0, 0], [55, 17, 17, 0]], jnp.int32)
    return made, params, made.condition(params, peaks), numbers


@pytest.mark.parametrize("name", ["flow", "ccsg"])
def test_samples_depend_on_their_own_key_and_row_only(name):
    made, params, condition, numbers = generator_case(name)
    keys = jax.random.split(jax.random.key(3), 3)
    first, again = (made.sample(params, keys, condition, numbers) for _ in range(2))
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    order = np.array([2, 0, 1])
    turned = jax.tree.map(lambda x: x[order], condition)
    moved = made.sample(params, keys[order], turned, numbers[order])
    for a, b in zip(first, moved):
        np.testing.assert_allclose(a[order], b, atol=1e-3)
    other = made.sample(params, jax.random.split(jax.random.key(4), 3), condition, numbers)
    assert np.abs(other.frac_coords - first.frac_coords)[first.node_mask].max() > 1e-2
    assert np.isfinite(first.lattice).all()
    np.testing.assert_array_equal(first.atomic_numbers, numbers)


@pytest.mark.parametrize("name", ["flow", "ccsg"])
def test_a_given_lattice_is_kept(name):
    made, params, condition, numbers = generator_case(name)
    known = jnp.tile(jnp.diag(jnp.array([3.0, 4.0, 5.0]))[None], (3, 1, 1))
    batch = made.sample(params, jax.random.key(0), condition, numbers, known)
    np.testing.assert_allclose(batch.lattice, known, atol=1e-5)
