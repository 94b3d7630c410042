"""CPCP, CCSG and FlowCCSG on small sizes: interfaces, symmetries, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.common import jitted, stir
from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.crystals.graph import to_graphs
from xtalnet_jax.models.ccsg import CCSG, Condition, FlowCCSG
from xtalnet_jax.models.cpcp import CPCP
from xtalnet_jax.models.cspnet import CSPNet
from xtalnet_jax.pxrd.pattern import PeakBatch

ENCODER = {"width": 16, "ffn": 32, "heads": 4, "layers": 1}
NETWORK = {"width": 16, "layers": 2, "num_freqs": 4}


def _crystals(sizes=(5, 3, 0), n_node=5):
    keys = jax.random.split(jax.random.key(3), 3)
    mask = jnp.arange(n_node)[None] < jnp.array(sizes)[:, None]
    numbers = jnp.where(mask, jax.random.randint(keys[0], mask.shape, 1, 95), 0)
    x = jax.random.uniform(keys[1], (*mask.shape, 3))
    lattice = 5 * jnp.eye(3)[None] + jax.random.normal(keys[2], (len(sizes), 3, 3))
    return CrystalBatch(
        numbers, x, jnp.where(mask.any(1)[:, None, None], lattice, jnp.eye(3)[None])
    )


def _peaks(n_graph=3, n_peak=4):
    keys = jax.random.split(jax.random.key(4), 2)
    mask = jnp.arange(n_peak)[None] < jnp.array([4, 2, 0])[:n_graph, None]
    position, intensity = (jax.random.uniform(k, mask.shape) for k in keys)
    return PeakBatch(position, intensity, mask, jnp.tile(jnp.array([[0.05, 1.0]]), (n_graph, 1)))


# Contrastive ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["metric", "log_metric"])
def towers(request):
    model = CPCP({**ENCODER, "position": "fourier"}, NETWORK, 8, request.param)
    return model, stir(jax.jit(model.init)(jax.random.key(0), _peaks(), _crystals()))


def test_towers_return_unit_vectors(towers):
    model, params = towers
    patterns, crystals, _ = jax.jit(model.apply)(params, _peaks(), _crystals())
    assert patterns.shape == crystals.shape == (3, 8)
    np.testing.assert_allclose(jnp.linalg.norm(patterns, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(crystals, axis=1), [1, 1, 0], rtol=1e-5)


def test_scale_starts_at_e_and_ends_at_100():
    model = CPCP(ENCODER, NETWORK)
    params = jax.jit(model.init)(jax.random.key(0), _peaks(), _crystals())
    apply = jitted(model)

    def scale(value):
        changed = {"params": {**params["params"], "logit_scale": jnp.asarray(value)}}
        return float(apply(changed, _peaks(), _crystals())[2])

    start = float(params["params"]["logit_scale"])
    assert scale(start) == pytest.approx(np.e, rel=1e-6)
    assert scale(9.0) == pytest.approx(100.0)


def test_crystal_vector_ignores_orientation_origin_and_order(towers):
    model, params = towers
    numbers, x, lattice = batch = _crystals()
    embed = jax.jit(lambda b: model.apply(params, b, method="embed_crystals"))
    turn, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(9), (3, 3)))
    order = jnp.array([1, 4, 0, 2, 3])
    turned = CrystalBatch(numbers[:, order], (x[:, order] + 0.37) % 1.0, lattice @ turn)
    np.testing.assert_allclose(embed(turned), embed(batch), atol=2e-5)
    larger = batch._replace(lattice=lattice * 1.05)
    assert jnp.abs(embed(larger) - embed(batch))[:2].max() > 1e-4


def test_crystal_vector_of_a_graphs_tuple(towers):
    model, params = towers
    batch = _crystals()
    graphs = jitted(model, "embed_graphs")(params, to_graphs(batch))
    dense = jitted(model, "embed_crystals")(params, batch)
    np.testing.assert_allclose(graphs[:3], dense, atol=2e-5)
    assert not graphs[3:].any()


def test_padded_crystals_leave_no_trace_in_gradients(towers):
    model, params = towers
    batch = _crystals()
    wide = CrystalBatch(
        jnp.pad(batch.atomic_numbers, ((0, 1), (0, 2))),
        jnp.pad(batch.frac_coords, ((0, 1), (0, 2), (0, 0)), constant_values=0.4),
        jnp.concatenate([batch.lattice, jnp.eye(3)[None]]),
    )

    @jax.jit
    def grads(params, batch):
        def scalar(params):
            vectors = model.apply(params, batch, method="embed_crystals")
            return (vectors * jnp.arange(8.0)[None]).sum()

        return jax.grad(scalar)(params)

    for ours, theirs in zip(
        jax.tree.leaves(grads(params, wide)), jax.tree.leaves(grads(params, batch))
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(theirs).max()) + 1e-6)


def test_unknown_lattice_form():
    with pytest.raises(ValueError, match="lattice_form"):
        CPCP(ENCODER, NETWORK, lattice_form="cell").init(jax.random.key(0), _peaks(), _crystals())


# Generators -------------------------------------------------------------------------------------


def _generator(model, batch=None):
    batch = _crystals() if batch is None else batch
    flow = isinstance(model, FlowCCSG)
    lattice = jnp.cos(jnp.arange(18.0)).reshape(3, 6) if flow else batch.lattice
    t = jnp.array([0.1, 0.5, 0.9]) if flow else jnp.array([1, 500, 1000])
    args = (batch.atomic_numbers, batch.frac_coords, lattice, t)
    return args, stir(jax.jit(model.init)(jax.random.key(0), _peaks(), *args))


@pytest.fixture(scope="module", params=["ccsg-cat", "ccsg-add", "flow-cat", "flow-add"])
def generator(request):
    kind, fusion = request.param.split("-")
    model = (FlowCCSG if kind == "flow" else CCSG)(ENCODER, NETWORK, 8, fusion)
    args, params = _generator(model)
    condition = jitted(model, "condition")(params, _peaks())
    denoise = jax.jit(lambda *a: model.apply(params, *a, method="denoise"))
    return model, params, condition, denoise, args


def test_encoding_once_is_the_same_as_in_the_call(generator):
    model, params, condition, denoise, args = generator
    once, at_once = denoise(condition, *args), jitted(model)(params, _peaks(), *args)
    for a, b in zip(once, at_once):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not once[0][args[0] == 0].any()


@pytest.mark.parametrize("what", ["pattern", "species", "coordinates", "lattice", "time"])
def test_everything_matters_to_both_outputs(generator, what):
    _, _, condition, denoise, (numbers, x, lattice, t) = generator
    before = denoise(condition, numbers, x, lattice, t)
    if what == "pattern":
        condition = condition._replace(
            pooled=condition.pooled + 0.5 * jnp.sin(jnp.arange(16.0))[None]
        )
    elif what == "species":
        numbers = numbers.at[0, 0].set(numbers[0, 0] % 90 + 1)
    elif what == "coordinates":
        x = x.at[0, 0].add(0.1)
    elif what == "lattice":
        lattice = lattice.at[0, 0].add(0.3)
    else:
        t = t.at[0].multiply(3)
    after = denoise(condition, numbers, x, lattice, t)
    for a, b in zip(after, before):
        assert jnp.abs(a - b)[0].max() > 1e-4


def test_peak_tokens_reach_the_flow_but_not_the_paper_s_network(generator):
    model, _, condition, denoise, args = generator
    if not isinstance(model, FlowCCSG):
        assert condition.tokens is None
        return
    before = denoise(condition, *args)
    after = denoise(condition._replace(tokens=condition.tokens + 0.5), *args)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(after, before)) > 1e-4


def test_order_and_origin_of_atoms(generator):
    _, _, condition, denoise, (numbers, x, *rest) = generator
    order = jnp.array([1, 4, 0, 2, 3])
    coord, lattice = denoise(condition, numbers, x, *rest)
    permuted = denoise(condition, numbers[:, order], x[:, order], *rest)
    np.testing.assert_allclose(permuted[0], coord[:, order], atol=1e-5)
    np.testing.assert_allclose(permuted[1], lattice, atol=1e-4)


def test_origin_does_not_matter_without_a_pattern_node(generator):
    model, _, condition, denoise, (numbers, x, *rest) = generator
    before, after = (denoise(condition, numbers, c, *rest) for c in (x, (x + 0.37) % 1.0))
    change = max(float(jnp.abs(a - b)[:2].max()) for a, b in zip(after, before))
    # In the "add" fusion of the paper's ablation the pattern sits at a fixed point of the cell.
    assert (change < 1e-3) == (model.fusion == "cat")


def test_lattice_noise_turns_with_the_lattice(generator):
    model, _, condition, denoise, (numbers, x, lattice, t) = generator
    if isinstance(model, FlowCCSG):
        pytest.skip("the flow's lattice numbers have no orientation")
    turn, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(9), (3, 3)))
    before, after = (
        denoise(condition, numbers, x, lattice, t),
        denoise(condition, numbers, x, lattice @ turn, t),
    )
    np.testing.assert_allclose(after[0], before[0], atol=2e-4)
    np.testing.assert_allclose(after[1], before[1] @ turn, atol=2e-3)


def test_neighbours_in_the_batch_do_not_matter(generator):
    _, _, condition, denoise, args = generator
    whole = denoise(condition, *args)
    single = denoise(*jax.tree.map(lambda a: a[1:2], (condition, *args)))
    for a, b in zip(single, whole):
        np.testing.assert_allclose(a, b[1:2], atol=1e-4)


def test_padded_atoms_leave_no_trace(generator):
    model, params, condition, _, (numbers, x, lattice, t) = generator

    @jax.jit
    def compute(params, numbers, x):
        def scalar(params, x):
            coord, cell = model.apply(params, condition, numbers, x, lattice, t, method="denoise")
            return jnp.sin(coord).sum() + jnp.sin(cell).sum(), (coord, cell)

        return jax.value_and_grad(scalar, (0, 1), has_aux=True)(params, x)

    (_, out), (by_params, _) = compute(params, numbers, x)
    wide = (
        jnp.pad(numbers, ((0, 0), (0, 3))),
        jnp.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=0.2),
    )
    (_, out_wide), (by_params_wide, by_x_wide) = compute(params, *wide)
    np.testing.assert_allclose(out_wide[0][:, :5], out[0], atol=1e-4)
    np.testing.assert_allclose(out_wide[1], out[1], atol=1e-3)
    assert not out_wide[0][:, 5:].any()
    assert not by_x_wide[:, 5:].any()
    for a, b in zip(jax.tree.leaves(by_params_wide), jax.tree.leaves(by_params)):
        np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(b).max()) + 1e-6)


def test_add_fusion_is_a_node_linked_to_every_atom():
    """The pattern node, built here by hand as one more atom at the centre of the cell."""
    model = CCSG(ENCODER, NETWORK, 8, "add")
    batch = _crystals((5, 4, 3))
    args, params = _generator(model, batch)
    numbers, x, lattice, t = args
    condition = jitted(model, "condition")(params, _peaks())
    coord, _ = jitted(model, "denoise")(params, condition, *args)

    from xtalnet_jax.models.ccsg import AtomInput
    from xtalnet_jax.models.embeddings import time_embedding

    inner = params["params"]
    h = AtomInput(16, "add").apply(
        {"params": inner["atom_input"]}, numbers, time_embedding(t, 8), condition.pooled
    )
    pattern = inner["atom_input"]["pattern"]
    expected_node = condition.pooled @ pattern["kernel"] + pattern["bias"][None]
    np.testing.assert_allclose(h[:, 5], expected_node, atol=1e-5)
    for g, n in enumerate((5, 4, 3)):  # one crystal alone, without padding, on an edge list
        nodes = jnp.concatenate([h[g, :n], expected_node[g : g + 1]])[None]
        places = jnp.concatenate([x[g, :n], jnp.full((1, 3), 0.5)])[None]
        metric = (lattice[g] @ lattice[g].T).reshape(1, 9)
        net = CSPNet(**NETWORK, layout="sparse")
        out = net.apply(
            {"params": inner["decoder"]}, nodes, places, metric, jnp.ones((1, n + 1), bool)
        )
        by_hand = out[0, :n] @ inner["coord_head"]["kernel"]
        np.testing.assert_allclose(coord[g, :n], by_hand, atol=1e-4)


def test_flow_sees_the_number_of_atoms():
    """With identical atoms at one place, only their number tells crystals apart."""
    model = FlowCCSG(ENCODER, NETWORK, 8)
    numbers = jnp.array([[6, 6, 0, 0], [6, 6, 6, 6], [6, 6, 6, 0]])
    args, params = _generator(model, CrystalBatch(numbers, jnp.zeros((3, 4, 3)), None))
    condition = Condition(
        jnp.ones((3, 16)), jnp.ones((3, 4, 16)), jnp.ones((3, 4), bool), jnp.zeros(3, bool)
    )
    same = jnp.zeros((3, 6)), jnp.full(3, 0.5)
    _, velocity = jitted(model, "denoise")(params, condition, *args[:2], *same)
    assert jnp.abs(velocity[0] - velocity[1]).max() > 1e-3


def test_flow_with_distances_needs_the_metric():
    model = FlowCCSG(ENCODER, {**NETWORK, "num_radial": 4}, 8)
    batch = _crystals()
    lattice, t = jnp.zeros((3, 6)), jnp.zeros(3)
    args = (_peaks(), batch.atomic_numbers, batch.frac_coords, lattice, t)
    with pytest.raises(ValueError, match="metric"):
        model.init(jax.random.key(0), *args)
    metric = batch.lattice @ batch.lattice.swapaxes(1, 2)
    params = stir(jax.jit(model.init)(jax.random.key(0), *args, metric=metric))
    apply = jitted(model)
    near, far = (apply(params, *args, metric=m) for m in (metric, 1.2 * metric))
    assert jnp.abs(near[0] - far[0]).max() > 1e-4


@pytest.mark.parametrize("model", [CCSG, FlowCCSG])
def test_unknown_fusion(model):
    with pytest.raises(ValueError, match='expected "cat" or "add"'):
        _generator(model(ENCODER, NETWORK, 8, "multiply"))
