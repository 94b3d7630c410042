"""The whole 20-step sampler with the reference's weights, schedules and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.cases import golden_case
from xtalnet_jax.diffusion import torus
from xtalnet_jax.diffusion.sampler import SamplerState, StepNoise, sample
from xtalnet_jax.diffusion.schedules import Schedules
from xtalnet_jax.models.ccsg import CCSG
from xtalnet_jax.pretrained.reference import load_reference
from xtalnet_jax.pxrd.pattern import PeakBatch

TABLES = (
    "beta_scheduler.betas",
    "beta_scheduler.alphas",
    "beta_scheduler.alphas_cumprod",
    "beta_scheduler.sigmas",
    "sigma_scheduler.sigmas",
    "sigma_scheduler.sigmas_norm",
)


@pytest.mark.parametrize("name", ["small", "large", "edge"])
def test_trajectory_of_the_reference(golden, name):
    case = golden_case(golden, name)
    data = np.load(golden / f"narrow_sampler20_{name}.npz")
    params, config = load_reference(golden / "narrow_ccsg_state.npz")
    model = CCSG(**{k: v for k, v in config.items() if k != "model"})
    peaks = PeakBatch(
        jnp.asarray(case.inputs["peak_id"], jnp.float32),
        jnp.asarray(case.inputs["peak_intensity"]),
        jnp.asarray(case.inputs["peak_mask"]),
        jnp.ones((len(case.inputs["num_atoms"]), 2)),
    )
    start = SamplerState(
        case.dense(data["noise/x_T"]), jnp.asarray(data["noise/l_T"]), jnp.int32(20)
    )
    noise = StepNoise(
        case.dense(data["noise/corr_x"]),
        case.dense(data["noise/pred_x"]),
        jnp.asarray(data["noise/pred_l"]),
    )
    schedules = Schedules(*(jnp.asarray(data[f"sched/{k}"]) for k in TABLES))

    @jax.jit
    def run(params, peaks, numbers):
        condition = model.apply(params, peaks, method="condition")

        def denoise(x, lattice, t):
            return model.apply(params, condition, numbers, x, lattice, t, method="denoise")

        return sample(
            jax.random.key(0),
            denoise,
            numbers,
            schedules,
            start=start,
            step_noise=noise,
            trajectory=True,
        )

    found, states = run(params, peaks, case.batch.atomic_numbers)
    mask = np.asarray(case.batch.node_mask)[None, :, :, None]
    truth = {k: data[f"f64/all_{k}"] for k in ("frac_coords", "lattices")}
    own_rounding = {k: data[f"f32/all_{k}"] - v for k, v in truth.items()}

    error = np.abs(torus.wrap(states.frac_coords - case.dense(truth["frac_coords"])[1:]) * mask)
    allowed = 10 * np.abs(torus.wrap(own_rounding["frac_coords"])).max() + 1e-5
    assert error.max() < allowed < 0.02
    # the lattice grows a hundredfold in the first step: compare with its size
    size = np.abs(truth["lattices"][1:]).max((1, 2, 3))
    error = np.abs(states.lattice - truth["lattices"][1:]).max((1, 2, 3)) / size
    allowed = 10 * (np.abs(own_rounding["lattices"][1:]).max((1, 2, 3)) / size).max() + 1e-5
    assert error.max() < allowed < 0.02
    np.testing.assert_array_equal(found.lattice, states.lattice[-1])
