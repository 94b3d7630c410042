"""Our networks against numbers printed by the reference implementation (random weights)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.common import dense, load_batch, relative, state_dict
from xtalnet_jax.models.ccsg import CCSG
from xtalnet_jax.models.cpcp import CPCP
from xtalnet_jax.models.cspnet import CSPLayer
from xtalnet_jax.models.transformer import EncoderLayer
from xtalnet_jax.pretrained.convert_torch import reference_config, reference_params

BATCHES = ("small", "large", "edge")
TOLERANCE = {"f32": 1e-5, "f64": 1e-10}
pytestmark = [pytest.mark.shared, pytest.mark.optimised]


@pytest.fixture(params=["f32", "f64"])
def kind(request):
    with jax.enable_x64(request.param == "f64"), jax.default_matmul_precision("highest"):
        yield request.param


@functools.cache
def _loaded(golden, tag):
    state = state_dict(golden, tag)
    config = reference_config(state)
    model = {"CPCP": CPCP, "CCSG": CCSG}[config.pop("model")]
    return model, config, reference_params(state)


def _setup(golden, tag, batch, kind, **network):
    dtype = jnp.float64 if kind == "f64" else jnp.float32
    model, config, params = _loaded(golden, tag)
    config = {**config, "network": {**config["network"], **network}}
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    return model(**config), params, load_batch(golden, batch, dtype), dtype


def _read(golden, name):
    return dict(np.load(golden / f"{name}.npz"))


def _check(found, expected, kind):
    for name, value in found.items():
        assert relative(value, expected[name]) < TOLERANCE[kind], name


def _cross_entropy(logits):
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, 1)))


def _contrastive_loss(model, params, batch):
    patterns, crystals, scale = model.apply(params, batch.peaks, batch.crystals)
    logits = scale * patterns @ crystals.T
    return (_cross_entropy(logits) + _cross_entropy(logits.T)) / 2, logits


def check_cpcp(golden, size, batch_name, kind):
    model, params, batch, _ = _setup(golden, f"{size}_cpcp", batch_name, kind)
    expected = _read(golden, f"{size}_cpcp_{batch_name}_{kind}")

    @jax.jit
    def compute(params, batch):
        pooled, tokens, _ = model.apply(params, batch.peaks, method=lambda m, p: m.pxrd_encoder(p))
        patterns, crystals, scale = model.apply(params, batch.peaks, batch.crystals)
        loss, logits = _contrastive_loss(model, params, batch)
        return {
            "cls_token": pooled,
            "features": tokens,
            "pxrd_feat_norm": patterns,
            "crystal_feat_norm": crystals,
            "logit_scale_exp": scale[None],
            "logits_per_pxrd": logits,
            "logits_per_atom": logits.T,
            "loss": loss,
        }

    found = compute(params, batch)
    if batch_name == "edge":  # one pattern, one crystal: nothing to confuse, the loss is exactly 0
        assert found.pop("loss") == expected["loss"] == 0
    _check(found, expected, kind)


@pytest.mark.parametrize("batch_name", BATCHES)
def test_cpcp(golden, batch_name, kind):
    check_cpcp(golden, "narrow", batch_name, kind)


@pytest.mark.slow
def test_cpcp_of_the_published_size(golden, kind):
    check_cpcp(golden, "default", "small", kind)


def check_ccsg(golden, size, batch_name, kind, layout):
    model, params, batch, dtype = _setup(golden, f"{size}_ccsg", batch_name, kind, layout=layout)
    noise = _read(golden, f"noise_{batch_name}")
    numbers, mask = batch.crystals.atomic_numbers, batch.mask
    condition = jax.jit(lambda p, x: model.apply(p, x, method="condition"))(params, batch.peaks)

    @jax.jit
    def denoise(params, condition, x, lattice, t):
        return model.apply(params, condition, numbers, x, lattice, t, method="denoise")

    def compare(expected, prefix, x, lattice, t):
        coord, epsilon = denoise(
            params, condition, dense(x, mask).astype(dtype), jnp.asarray(lattice, dtype), t
        )
        found = {f"{prefix}pred_x": np.asarray(coord)[mask], f"{prefix}pred_l": epsilon}
        _check(found, expected, kind)
        assert not np.asarray(coord)[~mask].any()

    expected = _read(golden, f"{size}_ccsg_train_{batch_name}_{kind}")
    _check({"pxrd_cls": condition.pooled}, expected, kind)
    inputs = (expected["input_frac_coords"], expected["input_lattice"])
    compare(expected, "", *inputs, jnp.asarray(noise["train/times"]))

    expected = _read(golden, f"{size}_ccsg_step_{batch_name}_{kind}")
    for step in (1000, 700, 500, 100, 2, 1):
        lattice, x = noise[f"step_t{step}/l_t"], noise[f"step_t{step}/x_t"]
        t = jnp.full(len(mask), step)
        compare(expected, f"t{step}/corr_", x, lattice, t)
        compare(expected, f"t{step}/pred_", expected[f"t{step}/x_half"], lattice, t)


@pytest.mark.parametrize("batch_name", BATCHES)
def test_ccsg(golden, batch_name, kind):
    check_ccsg(golden, "narrow", batch_name, kind, "dense")


def test_ccsg_on_an_edge_list(golden, kind):
    check_ccsg(golden, "narrow", "small", kind, "sparse")


@pytest.mark.slow
def test_ccsg_of_the_published_size(golden, kind):
    check_ccsg(golden, "default", "small", kind, "dense")


def _layer_outputs(model, params, *args):
    def is_layer(module, _):
        return isinstance(module, CSPLayer | EncoderLayer)

    @jax.jit
    def compute(params, *args):
        keep = {"capture_intermediates": is_layer, "mutable": ["intermediates"]}
        return model.apply(params, *args, **keep)[1]["intermediates"]

    return compute(params, *args)


@pytest.mark.parametrize("batch_name", ["small", "large"])
def test_every_layer(golden, batch_name):
    with jax.default_matmul_precision("highest"):
        model, params, batch, _ = _setup(golden, "narrow_cpcp", batch_name, "f32")
        found = _layer_outputs(model, params, batch.peaks, batch.crystals)
    expected = _read(golden, f"narrow_cpcp_{batch_name}_f32")
    real = np.pad(np.asarray(batch.peaks.mask), ((0, 0), (1, 0)), constant_values=True)
    for i in range(3):
        (tokens,) = found["pxrd_encoder"]["encoder"][f"layer_{i}"]["__call__"]
        reference = expected[f"layer/pxrd.sentence_encoder.layers.{i}"]
        if i == 2:  # of the last layer the front token alone is computed
            assert relative(tokens, reference[:, 0]) < 1e-5
        else:
            assert relative(np.asarray(tokens)[real], reference[real]) < 1e-5
        (atoms,) = found["crystal_network"][f"layer_{i}"]["__call__"]
        assert (
            relative(np.asarray(atoms)[batch.mask], expected[f"layer/crystal.csp_layer_{i}"]) < 1e-5
        )


def _gradients(golden, tag, batch_name):
    """The golden gradients as our tree; parameters without a gradient are 0."""
    expected = _read(golden, f"{tag}_grads_{batch_name}_f32")
    state = state_dict(golden, tag)
    grads = {k: expected.get(f"grad/{k}", np.zeros_like(v)) for k, v in state.items()}
    return reference_params(grads), expected


def _compare_trees(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected)
    ):
        # The golden gradients are float32 themselves: some sums cancel to 1e-2 of their terms.
        assert relative(ours, theirs) < 2e-5, jax.tree_util.keystr(path)


@pytest.mark.parametrize("batch_name", ["small", "large"])
def test_contrastive_gradients(golden, batch_name):
    with jax.default_matmul_precision("highest"):
        model, params, batch, _ = _setup(golden, "narrow_cpcp", batch_name, "f32")
        found = jax.jit(jax.grad(lambda p: _contrastive_loss(model, p, batch)[0]))(params)
    _compare_trees(found, _gradients(golden, "narrow_cpcp", batch_name)[0])


@pytest.mark.parametrize("batch_name", ["small", "large"])
def test_generator_gradients(golden, batch_name):
    model, params, batch, _ = _setup(golden, "narrow_ccsg", batch_name, "f32")
    point = _read(golden, f"narrow_ccsg_train_{batch_name}_f32")
    noise = _read(golden, f"noise_{batch_name}")
    mask = batch.mask

    def loss(params):
        condition = model.apply(params, batch.peaks, method="condition")
        coord, lattice = model.apply(
            params,
            jax.lax.stop_gradient(condition),
            batch.crystals.atomic_numbers,
            dense(point["input_frac_coords"], mask),
            jnp.asarray(point["input_lattice"]),
            jnp.asarray(noise["train/times"]),
            method="denoise",
        )
        square = (coord - dense(point["target_x"], mask)) ** 2
        coord_loss = jnp.where(mask[..., None], square, 0).sum() / (3 * mask.sum())
        return coord_loss + jnp.mean((lattice - noise["train/rand_l"]) ** 2)

    with jax.default_matmul_precision("highest"):
        value, found = jax.jit(jax.value_and_grad(loss))(params)
    reference, numbers = _gradients(golden, "narrow_ccsg", batch_name)
    assert float(value) == pytest.approx(float(numbers["loss"]), rel=1e-5)
    assert not any(g.any() for g in jax.tree.leaves(found["params"].pop("pxrd_encoder")))
    reference["params"].pop("pxrd_encoder")
    _compare_trees(found, reference)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(found)))
    assert norm == pytest.approx(float(numbers["grad_total_norm"]), rel=1e-5)
