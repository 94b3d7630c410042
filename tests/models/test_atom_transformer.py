"""The transformer over atoms: its formula, symmetries, padding, gradients, and how it is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.common import stir
from xtalnet_jax.models import ccsg
from xtalnet_jax.models.atom_transformer import AtomLayer, AtomTransformer, PairEmbedding
from xtalnet_jax.models.embeddings import fourier_differences, nearest_distance, radial_basis
from xtalnet_jax.models.kinds import module_of_kind
from xtalnet_jax.pxrd.pattern import PeakBatch

SMALL = {"width": 16, "layers": 2, "heads": 2, "pair_width": 8, "num_freqs": 3, "num_radial": 3}
RICH = {**SMALL, "cross_attention": 1}


def _inputs(n_graph=3, n_node=5, sizes=(5, 3, 1), width=16):
    """(h, frac_coords, lattice, mask, tokens, token_mask)."""
    keys = jax.random.split(jax.random.key(0), 4)
    mask = jnp.arange(n_node)[None] < jnp.asarray(sizes)[:, None]
    h = jax.random.normal(keys[0], (n_graph, n_node, width))
    x = jax.random.uniform(keys[1], (n_graph, n_node, 3))
    lattice = 4 * jnp.eye(3)[None] + jax.random.normal(keys[2], (n_graph, 3, 3))
    tokens = jax.random.normal(keys[3], (n_graph, 4, width))
    token_mask = jnp.asarray([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)[:n_graph]
    return h, x, lattice, mask, tokens, token_mask


def _function(**options):
    """The network as ``f(params, h, x, lattice, mask, tokens, token_mask)``; None draws params."""
    net = AtomTransformer(**{**RICH, **options})

    def apply(params, h, x, lattice, mask, tokens, token_mask):
        metric = lattice @ lattice.swapaxes(1, 2)
        call = {"metric": metric, "tokens": tokens, "token_mask": token_mask}
        args = (h, x, metric.reshape(-1, 9), mask)
        if params is None:
            return net.init(jax.random.key(1), *args, **call)
        return net.apply(params, *args, **call)

    return jax.jit(apply)


def _with_gradients(apply):
    """Outputs, and gradients of a generic scalar of them by parameters, h and coordinates."""

    def scalar(params, h, x, *rest):
        out = apply(params, h, x, *rest)
        return (jnp.sin(out) * jnp.cos(jnp.arange(out.shape[-1]))[None, None]).sum(), out

    def compute(*args):
        (_, out), grads = jax.value_and_grad(scalar, (0, 1, 2), has_aux=True)(*args)
        return out, grads

    return jax.jit(compute)


def _close(a, b, rtol=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * float(jnp.abs(y).max() + 1e-6))


@pytest.fixture(scope="module")
def rich():
    """The network with everything switched on, no parameter at its initial zero."""
    args, apply = _inputs(), _function()
    return stir(apply(None, *args)), apply, args


@pytest.fixture(scope="module")
def found(rich):
    """Its outputs and gradients."""
    params, apply, args = rich
    return _with_gradients(apply)(params, *args)


# The formula --------------------------------------------------------------------------------------


def _norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def _numpy(params):
    return jax.tree.map(lambda p: np.asarray(p, float), params["params"])


def test_pair_features_are_those_of_the_documented_pair():
    """Row i, column j: displacement from i to j, receiver i, sender j."""
    h, x, lattice, *_ = _inputs(n_node=3, sizes=(3, 3, 3))
    metric = lattice @ lattice.swapaxes(1, 2)
    cell = h[:, 0, :4]
    net = PairEmbedding(8, 3, 2)
    params = stir(jax.jit(net.init)(jax.random.key(0), h, x, cell, metric))
    psi, distance = net.apply(params, h, x, cell, metric)
    p = _numpy(params)
    i, j = 2, 0
    step = x[1, j] - x[1, i]
    radial = radial_basis(nearest_distance(step, metric[1]), 2)
    features = np.concatenate([*fourier_differences(step, 3), radial])
    atoms = _norm(np.asarray(h[1])) * p["atom_norm"]["scale"] + p["atom_norm"]["bias"]
    atoms = atoms @ p["atoms"]["kernel"] + p["atoms"]["bias"]
    hidden = features @ p["features"]["kernel"] + p["features"]["bias"]
    hidden += atoms[i, :8] + atoms[j, 8:]
    hidden += np.asarray(cell[1]) @ p["cell"]["kernel"] + p["cell"]["bias"]
    out = (hidden / (1 + np.exp(-hidden))) @ p["out"]["kernel"] + p["out"]["bias"]
    expected = _norm(out) * p["norm"]["scale"] + p["norm"]["bias"]
    np.testing.assert_allclose(psi[1, i, j], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(distance[1, i, j], nearest_distance(step, metric[1]), rtol=1e-5)


def test_attention_is_the_documented_sum():
    """One layer against a loop over atoms and heads."""
    heads, n, d, q = 2, 4, 8, 6
    rng = np.random.default_rng(0)
    h, psi = rng.standard_normal((1, n, d)), rng.standard_normal((1, n, n, q))
    cell, mask = rng.standard_normal((1, 3)), np.array([[True, True, True, False]])
    distance = rng.uniform(0, 3, (1, n, n))
    args = [jnp.asarray(a, jnp.float32) for a in (h, psi, cell)]
    args += [jnp.asarray(mask), jnp.asarray(distance, jnp.float32)]
    layer = AtomLayer(heads, expand=2)
    drawn = layer.init(jax.random.key(0), *args)
    np.testing.assert_allclose(drawn["params"]["slope"], [2.0, 0.1], rtol=1e-6)
    params = stir(drawn)
    out = layer.apply(params, *args)[0]

    p = _numpy(params)
    affine = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    scale, shift, ffn_scale, ffn_shift = np.split(affine("modulation", cell[0]), 4)

    def norm(name, x, scale, shift):
        return (_norm(x) * p[name]["scale"] + p[name]["bias"]) * (1 + scale) + shift

    x = norm("attention_norm", h[0], scale, shift)
    query, key, value = affine("qkv", x).reshape(n, 3, heads, -1).swapaxes(0, 1)
    look = affine("pair_query", x).reshape(n, heads, q)
    mixed = np.zeros((n, heads, d // heads + q))
    for i in range(n):
        for a in range(heads):
            score = [
                query[i, a] @ key[j, a] / 2
                + look[i, a] @ psi[0, i, j] / 6**0.5
                - p["slope"][a] * distance[0, i, j]
                for j in (0, 1, 2)
            ]
            weight = np.exp(score) / np.exp(score).sum()
            for j in (0, 1, 2):
                mixed[i, a] += weight[j] * np.concatenate([value[j, a], psi[0, i, j]])
    expected = h[0] + affine("out", mixed.reshape(n, -1))
    gate, y = np.split(affine("fc1", norm("ffn_norm", expected, ffn_scale, ffn_shift)), 2, -1)
    expected = expected + affine("fc2", gate / (1 + np.exp(-gate)) * y)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


# Symmetries ---------------------------------------------------------------------------------------


def test_permutation_of_atoms(rich):
    params, apply, (h, x, lattice, mask, *tokens) = rich
    order = jnp.array([3, 0, 4, 2, 1])
    expected = apply(params, h, x, lattice, mask, *tokens)[:, order]
    _close(apply(params, h[:, order], x[:, order], lattice, mask[:, order], *tokens), expected)


def test_permutation_of_peaks(rich):
    params, apply, (*args, tokens, mask) = rich
    order = jnp.array([2, 0, 3, 1])
    found = apply(params, *args, tokens[:, order], mask[:, order])
    _close(found, apply(params, *args, tokens, mask))


def test_periodic_translation(rich):
    params, apply, (h, x, *rest) = rich
    shift = jnp.array([[[0.3, -0.8, 0.55]], [[0.0, 0.4, 0.9]], [[0.1, 0.1, 0.1]]])
    expected = apply(params, h, x, *rest)
    _close(apply(params, h, x + shift, *rest), expected, 1e-4)
    _close(apply(params, h, (x + shift) % 1.0, *rest), expected, 1e-4)
    moved = x.at[0, 0, 0].add(0.1)
    assert jnp.abs(apply(params, h, moved, *rest) - expected).max() > 1e-3


def test_rotation_and_scale_of_the_cell(rich):
    params, apply, (h, x, lattice, *rest) = rich
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(4), (3, 3)))[0]
    expected = apply(params, h, x, lattice, *rest)
    _close(apply(params, h, x, lattice @ rotation, *rest), expected, 1e-4)
    assert jnp.abs(apply(params, h, x, 1.1 * lattice, *rest) - expected).max() > 1e-3


def test_two_equal_atoms_are_told_in_which_direction_the_other_is(rich):
    """Inversion swaps them; features even in the displacement could not tell them apart."""
    params, apply, (h, x, lattice, mask, *tokens) = rich
    mask = mask & (jnp.arange(5) < 2)[None]
    same = jnp.broadcast_to(h[:, :1], h.shape)
    out = apply(params, same, x, lattice, mask, *tokens)
    _close(apply(params, same, -x, lattice, mask, *tokens)[0, :2], out[0, 1::-1], 1e-4)
    assert jnp.abs(out[0, 0] - out[0, 1]).max() > 1e-2


def test_every_atom_sees_every_other(rich):
    params, apply, (h, x, *rest) = rich
    by_atom = jax.jacobian(lambda h: jnp.sin(apply(params, h, x, *rest)[0]).sum(-1))(h)[:, 0]
    assert (jnp.abs(by_atom).max(-1) > 1e-6).all()


# Padding and gradients ----------------------------------------------------------------------------


def test_padding_changes_nothing(rich, found):
    params, apply, (h, x, lattice, mask, tokens, token_mask) = rich
    more = ((0, 1), (0, 2), (0, 0))
    padded = (
        jnp.pad(h, more, constant_values=7.0),
        jnp.pad(x, more, constant_values=0.3),
        jnp.concatenate([lattice, jnp.eye(3)[None]]),
        jnp.pad(mask, more[:2]),
        jnp.pad(tokens, ((0, 1), (0, 3), (0, 0)), constant_values=9.0),
        jnp.pad(token_mask, ((0, 1), (0, 3))),
    )
    out, (by_params, by_h, by_x) = found
    out_pad, (by_params_pad, by_h_pad, by_x_pad) = _with_gradients(apply)(params, *padded)
    _close(by_params_pad, by_params, 1e-4)
    for ours, theirs in ((out_pad, out), (by_h_pad, by_h), (by_x_pad, by_x)):
        _close(ours[:3, :5], theirs, 1e-4)
        assert not ours[3].any()
        assert not ours[:, 5:].any()
    assert not out[~mask].any()
    assert by_x[0].any()


@pytest.mark.parametrize("case", ["one atom", "same place"])
def test_gradients_are_finite(rich, case):
    params, apply, (h, x, lattice, mask, *tokens) = rich
    if case == "one atom":
        args = (h[:, :1], x[:, :1], lattice, mask[:, :1], *tokens)
    else:
        args = (h, jnp.broadcast_to(x[:, :1], x.shape), lattice, mask, *tokens)
    out, grads = _with_gradients(apply)(params, *args)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves((out, grads)))
    assert out[:, 0].any()
    if case == "one atom":
        _close(out[2], apply(params, h, x, lattice, mask, *tokens)[2, :1], 1e-4)


def test_remat_changes_nothing_and_half_precision_little(rich, found):
    params, _, args = rich
    _close(_with_gradients(_function(remat=True))(params, *args), found, 1e-4)
    half = _function(dtype="bfloat16")(params, *args)
    assert half.dtype == jnp.float32
    assert 1e-4 < jnp.abs(half - found[0]).max() < 0.15


def test_learns_a_direction():
    """Where the other atoms lie, from geometry alone: every atom starts with the same features."""
    net = AtomTransformer(**{**SMALL, "num_radial": 0, "layers": 1})
    h, *_, mask = _inputs(n_graph=16, n_node=4, sizes=(4,) * 16)[:4]
    h, cell = jnp.ones_like(h), jnp.ones((16, 6))
    head = jax.random.normal(jax.random.key(2), (16, 3)) / 4

    def loss(params, key):
        x = jax.random.uniform(key, (16, 4, 3))
        step = x[:, None] - x[:, :, None]
        target = jnp.sin(2 * jnp.pi * step).sum(2)
        return ((net.apply(params, h, x, cell, mask) @ head - target) ** 2).mean() / target.var()

    tx = optax.adam(1e-2)

    def train(carry, key):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = jax.jit(net.init)(jax.random.key(0), h, jnp.zeros((16, 4, 3)), cell, mask)
    keys = jax.random.split(jax.random.key(3), 200)
    losses = jax.jit(lambda p: jax.lax.scan(train, (p, tx.init(p)), keys)[1])(params)
    assert losses[0] > 0.8
    assert losses[-20:].mean() < 0.2


# How it is chosen ---------------------------------------------------------------------------------


def _shapes(model, state, metric=None):
    """Shapes of parameters and outputs of CCSG or FlowCCSG, nothing computed."""
    peaks = PeakBatch(jnp.ones((2, 5)), jnp.ones((2, 5)), jnp.ones((2, 5), bool), jnp.ones((2, 2)))
    args = (peaks, jnp.ones((2, 4), int), jnp.zeros((2, 4, 3)), state, jnp.ones(2))
    extra = {} if metric is None else {"metric": metric}
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **extra))
    return params, jax.eval_shape(lambda p: model.apply(p, *args, **extra), params)


ENCODER = {"width": 8, "ffn": 8, "heads": 2, "layers": 1}
METRIC = 9 * jnp.tile(jnp.eye(3)[None], (2, 1, 1))


@pytest.mark.parametrize("fusion", ["cat", "add"])
def test_generators_take_either_backbone(fusion):
    network = {"kind": "transformer", **SMALL}
    flow = ccsg.FlowCCSG(encoder=ENCODER, network=network, fusion=fusion)
    params, out = _shapes(flow, jnp.ones((2, 6)), METRIC)
    assert [o.shape for o in out] == [(2, 4, 3), (2, 6)]
    assert "look" in params["params"]["decoder"]["blocks"]
    assert flow.bind(params).decoder.cross_attention == 2
    paper = ccsg.CCSG(encoder=ENCODER, network=network, fusion=fusion)
    _, out = _shapes(paper, 3 * jnp.tile(jnp.eye(3)[None], (2, 1, 1)))
    assert [o.shape for o in out] == [(2, 4, 3), (2, 3, 3)]


def test_without_a_kind_the_network_is_cspnet():
    network = {"width": 16, "layers": 2, "num_freqs": 3}
    named, plain = (
        _shapes(ccsg.FlowCCSG(encoder=ENCODER, network=n), jnp.ones((2, 6)), METRIC)[0]
        for n in ({"kind": "cspnet", **network}, network)
    )
    assert jax.tree.structure(named) == jax.tree.structure(plain)
    assert set(plain["params"]["decoder"]) == {"layer_0", "layer_1", "look_0", "final_norm"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "gnn"}, 'network.kind is "gnn", expected "cspnet" or "transformer"'),
        ({"kind": "transformer", "detach": True}, '"transformer" has no field detach; its fields'),
        ({"kind": "cspnet", "pair_width": 8}, '"cspnet" has no field pair_width'),
    ],
)
def test_unknown_kinds_and_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        module_of_kind(ccsg.BACKBONES, fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "width is 16 and heads is 3"),
        ({"num_radial": 2}, "metric tensor"),
        ({"cross_attention": 1}, "tokens"),
    ],
)
def test_bad_options_say_what_is_missing(options, message):
    h, x, _, mask, *_ = _inputs()
    net = AtomTransformer(**{**SMALL, "num_radial": 0, **options})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), h, x, jnp.ones((3, 6)), mask)
