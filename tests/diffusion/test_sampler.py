import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.cases import golden_case, random_batch
from xtalnet_jax.diffusion import noise, torus
from xtalnet_jax.diffusion.losses import oracle_denoiser
from xtalnet_jax.diffusion.sampler import (
    SamplerState,
    StepNoise,
    keep_known,
    predictor_corrector,
    sample,
)
from xtalnet_jax.diffusion.schedules import Schedules, make_schedules

FINE = make_schedules(1000)
COARSE = make_schedules(30)


def torus_error(a, b, mask):
    return np.abs(np.where(mask[:, :, None], torus.wrap(a - b), 0)).max()


def drifting_denoiser(mask):
    """Looks at every atom of its own crystal and at nothing else."""

    def denoise(x, lattice, t):
        wave = jnp.sin(2 * jnp.pi * x) * mask[:, :, None]
        mean = wave.sum(1, keepdims=True) / jnp.maximum(mask.sum(-1), 1)[:, None, None]
        return wave - 0.3 * mean, jnp.tanh(lattice + mean)

    return denoise


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_oracle_returns_its_crystal_and_a_flipped_sign_does_not(sign):
    batch = random_batch(0, (5, 2, 7), num_nodes=8)
    oracle = oracle_denoiser(batch, FINE)

    def denoise(x, lattice, t):
        coord, epsilon = oracle(x, lattice, t)
        return sign * coord, epsilon

    found, states = jax.jit(lambda key: sample(key, denoise, batch.atomic_numbers, FINE))(
        jax.random.key(1)
    )
    assert states is None
    error = torus_error(found.frac_coords, batch.frac_coords, batch.node_mask)
    assert error < 1e-6 if sign > 0 else error > 0.2
    np.testing.assert_allclose(found.lattice, batch.lattice, atol=5e-6)


@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("name", ["small", "large", "edge"])
def test_golden_steps_of_the_reference(golden, name, precision):
    """Each step replays the network's recorded outputs, so only the sampler is compared."""
    case = golden_case(golden, name)
    given = np.load(golden / f"noise_{name}.npz")
    out = np.load(golden / f"narrow_ccsg_step_{name}_{precision}.npz")
    table = np.load(golden / "schedules.npz")
    names = ("betas", "alphas", "alphas_cumprod", "beta_sigmas", "sigmas", "sigmas_norm")
    schedules = Schedules(*(jnp.asarray(table[k]) for k in names))
    mask = np.asarray(case.batch.node_mask)[:, :, None]
    coords = {k: case.dense(v) for k, v in [*given.items(), *out.items()] if v.shape[1:] == (3,)}

    def get(name, source):
        return coords.get(name, source[name])

    for t in (1000, 700, 500, 100, 2, 1):
        start = SamplerState(
            get(f"step_t{t}/x_t", given), jnp.asarray(given[f"step_t{t}/l_t"]), jnp.int32(t)
        )
        z = StepNoise(
            get(f"step_t{t}/corr_x", given),
            get(f"step_t{t}/pred_x", given),
            jnp.asarray(given[f"step_t{t}/pred_l"]),
        )
        replies = iter(
            (get(f"t{t}/{k}_pred_x", out).astype("f4"), out[f"t{t}/{k}_pred_l"].astype("f4"))
            for k in ("corr", "pred")
        )
        seen = []

        def replay(x, lattice, steps, replies=replies, seen=seen):
            seen.append((x, lattice, steps))
            return tuple(map(jnp.asarray, next(replies)))

        _, step = predictor_corrector(replay, schedules)
        keys = noise.crystal_keys(jax.random.key(0), len(start.lattice))
        state, info = step(keys, start, z)
        assert [len(s) for _, _, s in seen] == [len(keys)] * 2
        assert all((s == t).all() for _, _, s in seen)
        np.testing.assert_array_equal(seen[1][0], info.half_coords)
        half, after = get(f"t{t}/x_half", out), get(f"t{t}/x_next", out)
        np.testing.assert_allclose(info.half_coords * mask, half, atol=2e-6)
        assert np.abs(torus.wrap(state.frac_coords * mask - after * mask)).max() < 2e-6
        # at t = 1000 the lattice grows a hundredfold, so the tolerance is relative
        np.testing.assert_allclose(state.lattice, out[f"t{t}/l_next"], rtol=3e-5, atol=3e-5)
        assert state.t == t - 1


def test_scan_equals_a_python_loop_and_the_trajectory_is_optional():
    batch = random_batch(3, (4, 2))
    denoise = drifting_denoiser(batch.node_mask)
    found, states = jax.jit(
        lambda key: sample(key, denoise, batch.atomic_numbers, COARSE, trajectory=True)
    )(jax.random.key(5))
    assert states.frac_coords.shape == (30, 2, 4, 3)
    keys = noise.crystal_keys(jax.random.key(5), 2)
    init, step = predictor_corrector(denoise, COARSE)
    state, step = init(keys, 4), jax.jit(step)
    for i in range(30):
        state, _ = step(keys, state)
        np.testing.assert_allclose(states.lattice[i], state.lattice, rtol=1e-4, atol=1e-5)
    assert torus_error(found.frac_coords, state.frac_coords, batch.node_mask) < 1e-5
    assert state.t == 0
    np.testing.assert_array_equal(states.t, np.arange(30)[::-1])


def test_a_sample_ignores_its_neighbours_the_padding_and_other_keys():
    key = jax.random.key(2)

    def draw(key, numbers):
        return sample(key, drifting_denoiser(numbers > 0), numbers, COARSE)[0]

    draw = jax.jit(draw)
    small = random_batch(0, (3, 4)).atomic_numbers
    wide = random_batch(0, (3, 4, 9), num_nodes=11, num_graphs=5).atomic_numbers
    a, b, again = draw(key, small), draw(key, wide), draw(key, small)
    np.testing.assert_array_equal(a.frac_coords, again.frac_coords)
    assert torus_error(a.frac_coords, b.frac_coords[:2, :4], small > 0) < 1e-5
    np.testing.assert_allclose(a.lattice, b.lattice[:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(b.lattice[3:], np.tile(np.eye(3), (2, 1, 1)))
    assert not b.frac_coords[:, 9:].any()
    # keys given per crystal follow the crystal
    keys = noise.crystal_keys(key, 2)
    swapped = draw(keys[::-1], small[::-1])
    assert torus_error(a.frac_coords, swapped.frac_coords[::-1], small > 0) < 1e-5
    other = draw(jax.random.key(3), small)
    assert torus_error(a.frac_coords, other.frac_coords, small > 0) > 0.05


def test_the_start_is_the_prior():
    keys = noise.crystal_keys(jax.random.key(0), 2000)
    state = predictor_corrector(drifting_denoiser(jnp.ones((1, 2), bool)), COARSE)[0](keys, 2)
    x, lattice = np.asarray(state.frac_coords), np.asarray(state.lattice)
    for wave in (np.cos(2 * np.pi * x), np.sin(2 * np.pi * x), lattice, lattice**2 - 1):
        assert abs(wave.mean()) < 4.5 * wave.std() / np.sqrt(wave.size)
    correlation = np.cos(2 * np.pi * (x[:, 0] - x[:, 1]))
    assert abs(correlation.mean()) < 4.5 * correlation.std() / np.sqrt(correlation.size)


@pytest.mark.parametrize("known", ["lattice", "frac_coords"])
def test_what_is_known_is_kept_and_runs_down_its_own_process(known):
    batch = random_batch(7, (3, 4))
    denoise = drifting_denoiser(batch.node_mask)

    @jax.jit
    def draw(**kept):
        return sample(
            jax.random.key(0), denoise, batch.atomic_numbers, COARSE, trajectory=True, **kept
        )

    found, states = draw(**{known: getattr(batch, known)})
    free, _ = draw()
    if known == "lattice":
        np.testing.assert_array_equal(found.lattice, batch.lattice)
        np.testing.assert_allclose(states.lattice[-1], batch.lattice, atol=1e-5)
        assert np.abs(free.lattice - batch.lattice).max() > 0.1
        epsilon = states.lattice[14] - jnp.sqrt(COARSE.alpha_bars[15]) * batch.lattice
        assert 0.3 < epsilon.std() / jnp.sqrt(1 - COARSE.alpha_bars[15]) < 2.5
    else:
        mask = batch.node_mask
        assert torus_error(found.frac_coords, batch.frac_coords, mask) < 1e-6
        assert torus_error(states.frac_coords[-1], batch.frac_coords, mask) < 1e-6
        assert torus_error(free.frac_coords, batch.frac_coords, mask) > 0.05


def test_keeping_nothing_is_the_network_itself():
    batch = random_batch(7, (3, 4))
    denoise = drifting_denoiser(batch.node_mask)
    arguments = (batch.frac_coords, batch.lattice, jnp.array([3, 9]))
    for a, b in zip(keep_known(denoise, COARSE)(*arguments), denoise(*arguments)):
        np.testing.assert_array_equal(a, b)


def test_the_denoiser_is_traced_twice_whatever_the_number_of_steps():
    batch, traces = random_batch(7, (3, 4)), []

    def denoise(x, lattice, t):
        traces.append(t)
        return x, lattice

    jax.jit(lambda k: sample(k, denoise, batch.atomic_numbers, COARSE))(jax.random.key(0))
    assert len(traces) == 2
