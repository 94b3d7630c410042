import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.cases import golden_case, random_batch
from xtalnet_jax.diffusion import losses
from xtalnet_jax.diffusion.schedules import make_schedules

SCHEDULES = make_schedules(1000)


@pytest.mark.parametrize("name", ["small", "large", "edge"])
def test_golden_loss_of_the_reference(golden, name):
    case = golden_case(golden, name)
    noise, out = (
        np.load(golden / f) for f in (f"noise_{name}.npz", f"narrow_ccsg_train_{name}_f32.npz")
    )
    draws = losses.DiffusionNoise(
        jnp.asarray(noise["train/times"]),
        jnp.asarray(noise["train/rand_l"]),
        case.dense(noise["train/rand_x"]),
    )
    table = np.load(golden / "schedules.npz")["sigmas_norm"]
    schedules = make_schedules(score_second_moments=table)

    def replay(frac_coords, lattice, t):
        mask = case.batch.node_mask[:, :, None]
        expected = case.dense(out["input_frac_coords"])
        error = (frac_coords - expected + 0.5) % 1 - 0.5
        assert np.abs(error * mask).max() < 1e-6
        np.testing.assert_allclose(lattice, out["input_lattice"], atol=2e-5)
        return case.dense(out["pred_x"]), jnp.asarray(out["pred_l"])

    _, target = jax.jit(losses.add_noise)(case.batch, draws, schedules)
    np.testing.assert_allclose(
        target * case.batch.node_mask[:, :, None], case.dense(out["target_x"]), atol=3e-5
    )
    loss, metrics = losses.loss_given_noise(replay, case.batch, draws, schedules)
    for ours, key in ((loss, "loss"), *((metrics[k], k) for k in metrics)):
        np.testing.assert_allclose(ours, out[key], rtol=2e-6)


def linear_denoiser(params):
    """Couples every atom to its own coordinates and to the lattice: gradients see everything."""

    def denoise(frac_coords, lattice, t):
        time = t.astype(lattice.dtype)[:, None, None] / 1000
        return jnp.sin(frac_coords @ params + time), lattice @ params

    return denoise


def test_padding_changes_neither_loss_nor_gradient():
    sizes = (2, 5, 3)
    tight = random_batch(0, sizes)
    wide = random_batch(0, sizes, num_nodes=9, num_graphs=5)

    def loss(params, batch):
        return losses.diffusion_loss(jax.random.key(4), linear_denoiser(params), batch, SCHEDULES)[
            0
        ]

    params = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss))
    (a, grad_a), (b, grad_b) = (step(params, x) for x in (tight, wide))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(grad_a, grad_b, rtol=1e-5)


def test_the_oracle_has_no_loss_and_the_flipped_sign_has():
    batch = random_batch(2, (4, 6, 1), num_nodes=7)

    @jax.jit
    def metrics(sign):
        oracle = losses.oracle_denoiser(batch, SCHEDULES)

        def denoise(x, lattice, t):
            coord, epsilon = oracle(x, lattice, t)
            return sign * coord, epsilon

        return losses.diffusion_loss(jax.random.key(3), denoise, batch, SCHEDULES)[1]

    assert metrics(1.0)["loss_coord"] < 1e-5
    assert metrics(1.0)["loss_lattice"] < 1e-5
    assert metrics(-1.0)["loss_coord"] > 1.0


def test_target_has_unit_mean_square_at_every_step():
    """That is what the division by the root second moment is for."""
    for t in (1, 300, 700, 1000):
        sigma = SCHEDULES.sigmas[t]
        z = jax.random.normal(jax.random.key(t), (1, 20_000, 3))
        square = losses.coordinate_target(sigma * z, jnp.array([t]), SCHEDULES) ** 2
        assert abs(square.mean() - 1) < 4.5 * square.std() / np.sqrt(square.size)


def test_draws_are_the_crystals_own_and_t_is_uniform_on_1_to_T():
    key = jax.random.key(8)
    small, large = random_batch(0, (3, 4)), random_batch(0, (3, 4, 6), num_nodes=10)
    draw = jax.jit(losses.draw_noise, static_argnums=2)
    a, b = (draw(key, x, 10) for x in (small, large))
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y[:2, : x.shape[1]] if x.ndim > 1 else y[:2])
    many = jax.tree.map(lambda x: jnp.zeros((4000, *x.shape[1:]), x.dtype), small)
    draws = draw(key, many, 10)
    counts = np.bincount(draws.t, minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    assert ((counts[1:] - 400) ** 2 / 400).sum() < 27.9  # chi square of 9 at 0.1 %
    for x in (draws.lattice, draws.coord):
        assert abs(x.mean()) < 4.5 / np.sqrt(x.size)
        assert abs(x.var() - 1) < 4.5 * np.sqrt(2 / x.size)
    assert abs(jnp.mean(draws.coord[:, 0] * draws.coord[:, 1])) < 4.5 / np.sqrt(12_000)
