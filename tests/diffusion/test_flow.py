import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.cases import random_batch
from xtalnet_jax.diffusion import flow, lattice_code, torus
from xtalnet_jax.diffusion.flow import FlowConfig
from xtalnet_jax.diffusion.flow_sampler import FlowSampling, flow_sample, flow_sampler
from xtalnet_jax.diffusion.lattice_code import fit_stats
from xtalnet_jax.diffusion.noise import crystal_keys

SIZES = (1, 2, 5, 8)
BATCH = random_batch(0, SIZES, num_nodes=9, num_graphs=5)
MASK = BATCH.node_mask[:, :, None]
REAL = random_batch(1, (3,) * 20)
STATS = fit_stats(REAL.lattice, REAL.num_atoms)
encode = jax.jit(lattice_code.encode)
DRAW = jax.jit(flow.draw_flow_noise, static_argnums=2)


def learned(params):
    def denoise(x, code, t):
        wave = jnp.sin(2 * jnp.pi * x) @ params["coord"]
        return wave * (1 + t)[:, None, None], code @ params["lattice"] - t[:, None]

    return denoise


PARAMS = {
    "coord": jax.random.normal(jax.random.key(7), (3, 3)) * 0.1,
    "lattice": jax.random.normal(jax.random.key(8), (6, 6)) * 0.2,
}


def shape_error(a, b, mask):
    """Largest deviation of coordinates once the mean displacement is taken off."""
    d = np.where(mask, torus.wrap(np.asarray(a - b)), 0)
    d = d - d[:, :1]  # relative to the first atom
    return np.abs(np.where(mask, torus.wrap(d), 0)).max()


@pytest.mark.parametrize("num_sweeps", [0, 2])
def test_path_ends_at_the_data_starts_at_the_noise_and_has_the_stated_velocity(num_sweeps):
    draws = DRAW(jax.random.key(1), BATCH)

    @jax.jit
    def point(t):
        return flow.interpolate(BATCH, draws._replace(t=jnp.full(5, t)), STATS, num_sweeps)

    code = encode(BATCH.lattice, BATCH.num_atoms, STATS)
    end, start = point(1.0), point(0.0)
    assert np.abs(torus.wrap(end.frac_coords - BATCH.frac_coords) * MASK).max() < 1e-6
    np.testing.assert_allclose(end.lattice, code, atol=2e-5)  # float32, compiled against eager
    np.testing.assert_allclose(start.lattice, draws.lattice, atol=1e-6)
    if num_sweeps == 0:
        assert shape_error(start.frac_coords, draws.coord, MASK) < 1e-5
    for t in (0.1, 0.7):
        here, there = point(t), point(t + 0.01)
        step = torus.wrap(there.frac_coords - here.frac_coords) * MASK
        np.testing.assert_allclose(step, 0.01 * here.coord_velocity, atol=2e-6)
        step = there.lattice - here.lattice
        np.testing.assert_allclose(step, 0.01 * here.lattice_velocity, atol=2e-6)
        np.testing.assert_allclose(here.coord_velocity.sum(1), 0, atol=1e-5)


def test_noise_as_a_configuration_stays_uniform_after_the_shift():
    """Differences of coordinates at t = 0 are uniform and independent, whatever the data are."""
    data = jax.tree.map(lambda x: jnp.repeat(x[3:4], 3000, 0), random_batch(0, SIZES))
    draws = DRAW(jax.random.key(3), data)._replace(t=jnp.zeros(3000))
    x = np.asarray(jax.jit(flow.interpolate, static_argnums=3)(data, draws, STATS, 0).frac_coords)
    for i, j in ((0, 1), (2, 7)):
        for wave in (np.cos, np.sin):
            values = wave(2 * np.pi * (x[:, i] - x[:, j]))
            assert abs(values.mean()) < 4.5 * values.std() / np.sqrt(values.size)
    a, b = (np.cos(2 * np.pi * (x[:, 0] - x[:, k])) for k in (1, 2))
    assert abs((a * b).mean()) < 4.5 * (a * b).std() / np.sqrt(a.size)


@pytest.mark.parametrize("prediction", ["velocity", "clean"])
def test_the_oracle_has_no_loss_and_the_flipped_sign_has(prediction):
    exact = flow.oracle_velocity(BATCH, STATS)

    def metrics(sign):
        def velocity(x, code, t):
            coord, lattice = exact(x, code, t)
            return sign * coord + 7.0, lattice  # the mean over atoms is no business of the loss

        def clean(x, code, t):
            coord, lattice = velocity(x, code, t)
            return coord * (1 - t)[:, None, None], code + (1 - t)[:, None] * lattice

        denoise = velocity if prediction == "velocity" else clean
        config = FlowConfig(prediction=prediction)
        return flow.flow_loss(jax.random.key(2), denoise, BATCH, STATS, config)[1]

    good, bad = jax.jit(metrics)(1.0), jax.jit(metrics)(-1.0)
    assert good["loss_coord"] < 1e-6
    assert good["loss_lattice"] < 1e-6
    assert bad["loss_coord"] > 0.01


def test_a_clean_prediction_becomes_its_velocity():
    exact = flow.oracle_velocity(BATCH, STATS)
    code = encode(BATCH.lattice, BATCH.num_atoms, STATS)

    def clean(x, y, t):
        return exact(x, y, t)[0] * (1 - t)[:, None, None], code

    x, y = jax.random.uniform(jax.random.key(0), BATCH.frac_coords.shape), jnp.ones((5, 6))
    t = jnp.array([0.0, 0.2, 0.5, 0.9, 0.97])
    for a, b in zip(flow.velocity_from_clean(clean)(x, y, t), exact(x, y, t)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)
    for out in flow.velocity_from_clean(clean)(x, y, jnp.ones(5)):
        assert np.isfinite(out).all()


def test_padding_changes_neither_loss_nor_gradient():
    @jax.jit
    def step(params, batch):
        def loss(params):
            return flow.flow_loss(jax.random.key(4), learned(params), batch, STATS)[0]

        return jax.value_and_grad(loss)(params)

    tight = random_batch(0, SIZES)
    wide = random_batch(0, SIZES, num_nodes=17, num_graphs=7)
    (a, grad_a), (b, grad_b) = step(PARAMS, tight), step(PARAMS, wide)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), grad_a, grad_b
    )


def test_loss_does_not_see_where_the_crystal_lies():
    def invariant(x, code, t):
        difference = jnp.sin(2 * jnp.pi * (x[:, :, None] - x[:, None]))
        return difference.sum(2) * 0.1, code

    @jax.jit
    def loss(batch, draws):
        return flow.loss_given_noise(invariant, batch, draws, STATS)[1]["loss_coord"]

    draws = DRAW(jax.random.key(4), BATCH)
    shift = jnp.array([[[0.3, 0.8, 0.1]]])
    moved = BATCH._replace(frac_coords=(BATCH.frac_coords + shift) % 1)
    moved_draws = draws._replace(coord=(draws.coord + shift) % 1)
    assert loss(moved, moved_draws) == pytest.approx(float(loss(BATCH, draws)), rel=1e-4)


def test_time_sampling():
    many = jax.tree.map(lambda x: jnp.repeat(x[:1], 4000, 0), BATCH)
    uniform = DRAW(jax.random.key(0), many).t
    middle = DRAW(jax.random.key(0), many, "logit_normal").t
    for t, variance in ((uniform, 1 / 12), (middle, 0.0434)):
        assert ((t >= 0) & (t < 1)).all()
        assert abs(t.mean() - 0.5) < 4.5 * t.std() / np.sqrt(4000)
        assert t.var() == pytest.approx(variance, rel=0.1)
    late = DRAW(jax.random.key(0), many, "late").t
    assert ((late >= 0) & (late <= 1)).all()
    for remaining in (0.1, 0.5):  # P(1 - t < r) is the square root of r
        share = (1 - late < remaining).mean()
        expected = np.sqrt(remaining)
        assert abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / 4000)


@pytest.mark.parametrize(
    "options",
    [
        FlowSampling(10),
        FlowSampling(10, "heun"),
        FlowSampling(1),
        FlowSampling(12, churn=0.5),
        FlowSampling(12, "heun", churn=1.5),
        FlowSampling(10, late=2.0),
        FlowSampling(12, churn=0.5, late=1.5),
    ],
)
def test_oracle_brings_noise_to_its_crystal(options):
    exact = flow.oracle_velocity(BATCH, STATS)

    def draw(denoise):
        run = jax.jit(lambda k: flow_sample(k, denoise, BATCH.atomic_numbers, STATS, options)[0])
        return run(jax.random.key(0))

    found = draw(exact)
    assert shape_error(found.frac_coords, BATCH.frac_coords, MASK) < 1e-5
    code = encode(BATCH.lattice, BATCH.num_atoms, STATS)
    np.testing.assert_allclose(
        encode(found.lattice, BATCH.num_atoms, STATS)[:4], code[:4], atol=2e-3
    )
    wrong = draw(lambda *a: jax.tree.map(jnp.negative, exact(*a)))
    assert shape_error(wrong.frac_coords, BATCH.frac_coords, MASK) > 0.05


def test_heun_is_of_second_order_and_euler_of_first():
    """dy/dt = (1 + 2 t) y has the solution y0 exp(t + t^2)."""

    def denoise(x, code, t):
        return 0 * x, (1 + 2 * t)[:, None] * code

    def error(method, num_steps):
        init, step = flow_sampler(denoise, MASK[..., 0], FlowSampling(num_steps, method))
        keys = crystal_keys(jax.random.key(0), 5)
        start = init(keys)
        end = jax.lax.scan(lambda s, _: (step(keys, s)[0], None), start, None, num_steps)[0]
        return np.abs(end.code - start.code * np.exp(2)).max()

    euler, heun = ([error(m, n) for n in (8, 16, 32)] for m in ("euler", "heun"))
    assert euler[2] < 0.65 * euler[1] < 0.65**2 * euler[0]
    # the last step of Heun's method is Euler's: one step of local error h^2 is left
    assert heun[2] < 0.35 * heun[1] < 0.35**2 * heun[0]
    assert heun[1] < euler[1] / 4


@pytest.mark.parametrize("options", [FlowSampling(6, "heun", 2.0, 0.5), FlowSampling(6)])
def test_a_sample_ignores_its_neighbours_and_the_padding(options):
    @jax.jit
    def draw(key, numbers):
        return flow_sample(key, learned(PARAMS), numbers, STATS, options)[0]

    small = random_batch(0, (3, 4)).atomic_numbers
    wide = random_batch(0, (3, 4, 9), num_nodes=11, num_graphs=4).atomic_numbers
    a, b = draw(jax.random.key(1), small), draw(jax.random.key(1), wide)
    mask = (small > 0)[:, :, None]
    difference = torus.wrap(a.frac_coords - b.frac_coords[:2, :4])
    assert np.abs(np.where(mask, difference, 0)).max() < 1e-5
    np.testing.assert_allclose(a.lattice, b.lattice[:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(b.lattice[3], np.eye(3))
    again, other = draw(jax.random.key(1), small), draw(jax.random.key(2), small)
    np.testing.assert_array_equal(a.frac_coords, again.frac_coords)
    assert np.abs(a.lattice - other.lattice).max() > 1e-2


def test_known_lattice_is_kept_and_shown_at_all_times():
    code = encode(BATCH.lattice, BATCH.num_atoms, STATS)
    seen = []

    def denoise(x, shown, t):
        jax.debug.callback(lambda c: seen.append(np.asarray(c)), shown, ordered=True)
        return learned(PARAMS)(x, shown, t)

    found, states = flow_sample(
        jax.random.key(1),
        denoise,
        BATCH.atomic_numbers,
        STATS,
        FlowSampling(5, "heun"),
        lattice=BATCH.lattice,
        trajectory=True,
    )
    jax.effects_barrier()
    np.testing.assert_array_equal(found.lattice, BATCH.lattice)
    assert len(seen) == 9
    np.testing.assert_allclose(np.stack(seen), np.tile(code, (9, 1, 1)), atol=1e-6)
    np.testing.assert_array_equal(states.step, np.arange(1, 6))


def test_known_lattices_stand_still_and_have_no_loss():
    draws = DRAW(jax.random.key(1), BATCH)
    known = jnp.array([True, False, True, False, False])
    point = jax.jit(flow.interpolate, static_argnums=3)(BATCH, draws, STATS, 2, known)
    code = encode(BATCH.lattice, BATCH.num_atoms, STATS)
    np.testing.assert_allclose(point.lattice[known], code[known], atol=1e-6)
    np.testing.assert_allclose(point.lattice_velocity[known], 0, atol=1e-6)
    assert np.abs(point.lattice_velocity[1]).max() > 0.1

    @jax.jit
    def metrics(offset, known):
        def denoise(x, code, t):
            return 0 * x, offset[:, None] + 0 * code

        return flow.loss_given_noise(denoise, BATCH, draws, STATS, known=known)[1]

    wrong_where_known = jnp.where(known, 7.0, 0.0)
    free = metrics(jnp.zeros(5), known)
    np.testing.assert_allclose(
        metrics(wrong_where_known, known)["loss_lattice"], free["loss_lattice"]
    )
    assert metrics(wrong_where_known, None)["loss_lattice"] > free["loss_lattice"] + 1
    assert metrics(wrong_where_known, known)["loss_coord"] == free["loss_coord"]


def test_share_of_known_lattices():
    drawn = flow.draw_known(jax.random.key(0), 4000, 0.3)
    assert abs(drawn.mean() - 0.3) < 4.5 * np.sqrt(0.21 / 4000)
    assert not flow.draw_known(jax.random.key(0), 100, 0.0).any()


@pytest.mark.parametrize("late", [1.0, 1.5])
def test_churn_keeps_the_marginal_of_the_lattice_code(late):
    """Data N(m, 0): y_t = t m + (1 - t) y0 has a known mean and spread at every t."""
    n, options = 4000, FlowSampling(8, churn=0.75, late=late)
    target = jnp.arange(6.0)

    def denoise(x, code, t):
        return 0 * x, (target[None] - code) / (1 - t)[:, None]

    mask = jnp.ones((n, 1), bool)
    init, step = flow_sampler(denoise, mask, options)
    keys = crystal_keys(jax.random.key(0), n)
    state, step = init(keys), jax.jit(step)
    for _ in range(5):
        state, _ = step(keys, state)
    t = 1 - (3 / 8) ** late
    error = 4.5 / np.sqrt(n)
    np.testing.assert_allclose(state.code.mean(0), t * target, atol=error * (1 - t))
    np.testing.assert_allclose(state.code.std(0), 1 - t, atol=error * (1 - t))


def test_the_network_is_called_as_often_as_stated():
    calls = []

    def denoise(x, code, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t[0], ordered=True)
        return 0 * x, 0 * code

    def count(options):
        calls.clear()
        jax.block_until_ready(
            flow_sample(jax.random.key(0), denoise, BATCH.atomic_numbers, STATS, options)
        )
        jax.effects_barrier()
        return len(calls)

    assert count(FlowSampling(4)) == 4
    assert calls == [0.0, 0.25, 0.5, 0.75]
    assert count(FlowSampling(4, "heun")) == 7
    assert count(FlowSampling(4, late=2.0)) == 4
    assert calls == [0.0, 0.4375, 0.75, 0.9375]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"method": "rk4"}, "method is 'rk4'"),
        ({"churn": -1.0}, "churn is -1.0"),
        ({"late": 0.5}, "late is 0.5"),
    ],
)
def test_sampling_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        flow_sampler(learned(PARAMS), MASK[..., 0], FlowSampling(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_sampling": "cubic"}, "time_sampling is 'cubic'"),
        ({"prediction": "noise"}, "prediction is 'noise'"),
        ({"num_sweeps": -1}, "num_sweeps is -1"),
    ],
)
def test_loss_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        flow.flow_loss(jax.random.key(0), learned(PARAMS), BATCH, STATS, FlowConfig(**change))
