"""The crystal network: three layouts, symmetries, padding, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.common import jitted
from xtalnet_jax.models.cspnet import CSPNet

SMALL = {"width": 16, "layers": 2, "num_freqs": 4}


def _inputs(key=0, n_graph=3, n_node=5, sizes=(5, 3, 1), width=16):
    keys = jax.random.split(jax.random.key(key), 6)
    mask = jnp.arange(n_node)[None] < jnp.asarray(sizes)[:, None]
    h = jax.random.normal(keys[0], (n_graph, n_node, width))
    x = jax.random.uniform(keys[1], (n_graph, n_node, 3))
    lattice = 4 * jnp.eye(3)[None] + jax.random.normal(keys[2], (n_graph, 3, 3))
    metric = lattice @ lattice.swapaxes(1, 2)
    tokens = jax.random.normal(keys[3], (n_graph, 4, width))
    token_mask = jnp.asarray([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)[:n_graph]
    return h, x, metric, mask, tokens, token_mask


def _net(**options):
    """A network as a function (params, h, x, metric, mask, tokens, token_mask) -> h."""
    net = CSPNet(**{**SMALL, **options})

    def apply(params, h, x, metric, mask, tokens, token_mask):
        extra = {"tokens": tokens, "token_mask": token_mask} if net.cross_attention else {}
        features = metric.reshape(-1, 9)
        return net.apply(params, h, x, features, mask, metric=metric, **extra)

    def init(key, h, x, metric, mask, tokens, token_mask):
        extra = {"tokens": tokens, "token_mask": token_mask} if net.cross_attention else {}
        return net.init(key, h, x, metric.reshape(-1, 9), mask, metric=metric, **extra)

    return jax.jit(init), jax.jit(apply)


def _value_and_grads(apply, params, args):
    """A generic scalar of the outputs and its gradients by parameters, h and coordinates."""

    @jax.jit
    def compute(params, h, x):
        def scalar(params, h, x):
            out = apply(params, h, x, *args[2:])
            weight = jnp.cos(jnp.arange(out.shape[-1]))
            return (jnp.sin(out) * weight[None, None]).sum(), out

        (_, out), grads = jax.value_and_grad(scalar, (0, 1, 2), has_aux=True)(params, h, x)
        return out, grads

    return compute(params, *args[:2])


def _close(a, b, rtol=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * float(jnp.abs(y).max() + 1e-6))


@pytest.mark.parametrize(
    ("n_node", "sizes", "options"),
    [
        (5, (5, 3, 1), {}),
        (6, (6, 5, 0), {"detach": False, "num_radial": 3}),
        (2, (2, 1, 2), {"cross_attention": 1, "heads": 2}),
        (1, (1, 1, 0), {}),
        (5, (5, 0, 2), {"num_radial": 3, "remat": True}),
    ],
)
def test_layouts_agree(n_node, sizes, options):
    args = _inputs(n_node=n_node, sizes=sizes)
    init, sparse = _net(layout="sparse", **options)
    params = init(jax.random.key(1), *args)
    theirs = _value_and_grads(sparse, params, args)
    for layout in ("offsets", "square")[: 1 + options.get("detach", True)]:
        ours = _value_and_grads(_net(layout=layout, **options)[1], params, args)
        _close(ours, theirs)
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(ours))


@pytest.mark.parametrize(
    ("n_node", "sizes", "chunk", "options"),
    [
        (
            8,
            (8, 5, 1),
            2,
            {"cross_attention": 1, "heads": 2},
        ),  # a block and a rest without way back
        (8, (8, 5, 1), 3, {"detach": False, "num_radial": 3, "remat": True}),  # ... of one offset
        (9, (9, 8, 0), 2, {"detach": False, "num_radial": 3}),  # blocks only
        (9, (9, 8, 0), 3, {"num_radial": 3}),  # a block and a rest
        (5, (5, 3, 1), 7, {"detach": False}),  # less than a block
        (1, (1, 1, 0), 2, {}),
        (8, (8, 5, 1), 2, {"layout": "square", "cross_attention": 1, "heads": 2}),
        (9, (9, 8, 0), 4, {"layout": "square", "num_radial": 3, "remat": True}),  # 3 rows missing
        (5, (5, 3, 1), 7, {"layout": "square"}),
    ],
)
def test_blocks_of_pairs_agree_with_all_at_once(n_node, sizes, chunk, options):
    args = _inputs(n_node=n_node, sizes=sizes)
    options = {"layout": "offsets"} | options
    init, whole = _net(**options)
    params = init(jax.random.key(1), *args)
    init_blocks, blocks = _net(chunk=chunk, **options)
    _close(init_blocks(jax.random.key(1), *args), params, rtol=0)
    ours, theirs = (_value_and_grads(f, params, args) for f in (blocks, whole))
    _close(ours, theirs)
    if not options.get("detach", True):
        assert float(jnp.abs(ours[1][2]).max()) > 1e-3


@pytest.mark.parametrize("layout", ["offsets", "square"])
def test_memory_goes_with_the_block(layout):
    """Without blocks the step of a large cell wants all of its pairs at once."""
    args = _inputs(n_graph=1, n_node=64, sizes=(64,), width=64)
    options = {"num_radial": 3, "layout": layout, "width": 64}
    init, whole = _net(**options)
    params = jax.eval_shape(init, jax.random.key(1), *args)

    def temporary(apply):
        def loss(params, *args):
            return (apply(params, *args) ** 2).sum()

        lowered = jax.jit(jax.grad(loss)).lower(params, *args)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    _, blocks = _net(chunk=4, **options)
    assert temporary(blocks) < temporary(whole) / 3


def test_an_empty_block_is_refused():
    with pytest.raises(ValueError, match="chunk is 0"):
        _net(chunk=0)[0](jax.random.key(0), *_inputs())


@pytest.fixture(scope="module")
def rich():
    """The network with everything switched on."""
    args = _inputs()
    init, apply = _net(detach=False, num_radial=3, cross_attention=1, heads=2)
    return init(jax.random.key(1), *args), apply, args


def test_permutation_of_atoms(rich):
    params, apply, (h, x, metric, mask, *tokens) = rich
    order = jnp.array([3, 0, 4, 2, 1])
    expected = apply(params, h, x, metric, mask, *tokens)[:, order]
    found = apply(params, h[:, order], x[:, order], metric, mask[:, order], *tokens)
    _close(found, expected)


def test_permutation_of_peaks(rich):
    params, apply, (*args, tokens, mask) = rich
    order = jnp.array([2, 0, 3, 1])
    found = apply(params, *args, tokens[:, order], mask[:, order])
    _close(found, apply(params, *args, tokens, mask))


def test_periodic_translation(rich):
    params, apply, (h, x, *rest) = rich
    shift = jnp.array([[[0.3, -0.8, 0.55]], [[0.0, 0.4, 0.9]], [[0.1, 0.1, 0.1]]])
    expected = apply(params, h, x, *rest)
    _close(apply(params, h, x + shift, *rest), expected)
    _close(apply(params, h, (x + shift) % 1.0, *rest), expected)
    moved = x.at[0, 0, 0].add(0.1)
    assert jnp.abs(apply(params, h, moved, *rest) - expected).max() > 1e-3


def test_every_atom_sees_every_other(rich):
    params, apply, (h, x, *rest) = rich
    by_atom = jax.jacobian(lambda h: jnp.sin(apply(params, h, x, *rest)[0]).sum(-1))(h)[:, 0]
    assert (jnp.abs(by_atom).max(-1) > 1e-6).all()


def test_padding_changes_nothing(rich):
    params, apply, args = rich
    h, x, metric, mask, tokens, token_mask = args
    more = ((0, 1), (0, 2), (0, 0))
    padded = (
        jnp.pad(h, more, constant_values=7.0),
        jnp.pad(x, more, constant_values=0.3),
        jnp.concatenate([metric, jnp.eye(3)[None]]),
        jnp.pad(mask, more[:2]),
        jnp.pad(tokens, ((0, 1), (0, 3), (0, 0)), constant_values=9.0),
        jnp.pad(token_mask, ((0, 1), (0, 3))),
    )
    out, (by_params, by_h, by_x) = _value_and_grads(apply, params, args)
    out_pad, (by_params_pad, by_h_pad, by_x_pad) = _value_and_grads(apply, params, padded)
    _close(by_params_pad, by_params)
    for ours, theirs in ((out_pad, out), (by_h_pad, by_h), (by_x_pad, by_x)):
        _close(ours[:3, :5], theirs)
        assert not ours[3].any()
        assert not ours[:, 5:].any()
    assert not out[~mask].any()


def test_detach_stops_only_the_coordinates():
    args = _inputs()
    init, apply = _net()
    params = init(jax.random.key(1), *args)
    out, (_, by_h, by_x) = _value_and_grads(apply, params, args)
    assert not by_x.any()
    assert by_h.any()
    _, attached = _net(detach=False)
    out_attached, (_, by_h_attached, by_x) = _value_and_grads(attached, params, args)
    _close((out, by_h), (out_attached, by_h_attached))
    assert by_x.any()


def test_coordinate_gradient_is_the_slope(rich):
    params, apply, (h, x, *rest) = rich
    with jax.enable_x64(True):
        params, h, x, *rest = jax.tree.map(
            lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a,
            jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, (params, h, x, *rest))),
        )
        step = jax.random.normal(jax.random.key(5), x.shape, jnp.float64)
        value = jax.jit(lambda s: jnp.sin(apply(params, h, x + s * step, *rest)).sum())
        slope = (value(1e-5) - value(-1e-5)) / 2e-5
        assert float(jax.grad(value)(0.0)) == pytest.approx(float(slope), rel=1e-6)


def test_gradient_is_finite_where_atoms_coincide(rich):
    params, apply, (h, x, *rest) = rich
    same = jnp.broadcast_to(x[:, :1], x.shape)
    grads = _value_and_grads(apply, params, (h, same, *rest))[1]
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_remat_changes_nothing_and_half_precision_little():
    args = _inputs()
    init, apply = _net()
    params = init(jax.random.key(1), *args)
    expected = _value_and_grads(apply, params, args)
    _close(_value_and_grads(_net(remat=True)[1], params, args), expected)
    half, _ = _value_and_grads(_net(dtype="bfloat16")[1], params, args)
    assert half.dtype == jnp.float32
    assert 1e-4 < jnp.abs(half - expected[0]).max() < 0.1


def test_graphs_tuple():
    """The edge-list form on jraph's container, alone and packed, is the dense network."""
    from xtalnet_jax.crystals.crystal import CrystalBatch, unstack_crystals
    from xtalnet_jax.crystals.graph import pad_graphs, to_graphs

    h, x, metric, mask, *_ = _inputs()
    lattice = jnp.linalg.cholesky(metric)
    batch = CrystalBatch(jnp.where(mask, 6, 0), x, lattice)
    net = CSPNet(num_radial=3, **SMALL)
    params = jax.jit(net.init)(jax.random.key(0), h, x, metric.reshape(-1, 9), mask, metric=metric)
    expected = jax.jit(net.apply)(params, h, x, metric.reshape(-1, 9), mask, metric=metric)
    packed = pad_graphs(unstack_crystals(batch), max_nodes=12, max_edges=40, max_graphs=5)
    for graphs, ours in ((to_graphs(batch), slice(None)), (packed, np.asarray(mask))):
        graphs = jax.tree.map(jnp.asarray, graphs)
        rows = h.reshape(-1, 16) if isinstance(ours, slice) else h[ours]
        flat = jnp.zeros((graphs.nodes["atomic_numbers"].shape[0], 16)).at[: len(rows)].set(rows)
        cell = graphs.globals["lattice"]
        features = (cell @ cell.swapaxes(1, 2)).reshape(-1, 9)
        found = jitted(net, "on_graphs")(params, flat, graphs, features)
        _close(found[: len(rows)], expected[ours].reshape(-1, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "ring"}, 'layout is "ring"'),
        ({"num_radial": 2}, "metric tensor"),
        ({"cross_attention": 1}, "tokens"),
    ],
)
def test_bad_options_say_what_is_missing(options, message):
    h, x, metric, mask, *_ = _inputs()
    with pytest.raises(ValueError, match=message):
        CSPNet(**SMALL, **options).init(jax.random.key(0), h, x, metric.reshape(-1, 9), mask)
