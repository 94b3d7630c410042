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


def double(x):
    x = np.asarray(x)
    return jnp.asarray(x, jnp.float64 if x.dtype.kind == "f" else x.dtype)


@pytest.mark.parametrize("name", ["small", "large", "edge"])
def test_trajectory_of_the_reference(golden, name):
    """In float64, so that 40 chained network evaluations leave nothing to excuse."""
    with jax.enable_x64(True):
        case = golden_case(golden, name)
        data = np.load(golden / f"narrow_sampler20_{name}.npz")
        params, config = load_reference(golden / "narrow_ccsg_state.npz")
        model = CCSG(**{k: v for k, v in config.items() if k != "model"})
        peaks = PeakBatch(
            double(case.inputs["peak_id"].astype(float)),
            double(case.inputs["peak_intensity"]),
            jnp.asarray(case.inputs["peak_mask"]),
            jnp.ones((len(case.inputs["num_atoms"]), 2)),
        )
        start = SamplerState(
            double(case.dense(data["noise/x_T"])), double(data["noise/l_T"]), jnp.int32(20)
        )
        noise = StepNoise(
            double(case.dense(data["noise/corr_x"])),
            double(case.dense(data["noise/pred_x"])),
            double(data["noise/pred_l"]),
        )
        schedules = Schedules(*(double(data[f"sched/{k}"]) for k in TABLES))

        @jax.jit
        def run(params, peaks, numbers):
            condition = model.apply(params, peaks, method="condition")

            def denoise(x, lattice, t):
                return model.apply(params, condition, numbers, x, lattice, t, method="denoise")

            key = jax.random.key(0)
            given = {"start": start, "step_noise": noise, "trajectory": True}
            return sample(key, denoise, numbers, schedules, **given)

        found, states = run(jax.tree.map(double, params), peaks, case.batch.atomic_numbers)
        coords = case.dense(data["f64/all_frac_coords"])[1:]
        error = torus.wrap(states.frac_coords - coords) * case.batch.node_mask[None, :, :, None]
        assert error.dtype == jnp.float64
        # what is left is the reference's 2 pi rounded to float32 in its Fourier features
        assert np.abs(error).max() < 1e-6
        lattices = data["f64/all_lattices"][1:]
        size = np.abs(lattices).max((1, 2, 3), keepdims=True)
        np.testing.assert_allclose(states.lattice / size, lattices / size, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found.lattice, states.lattice[-1])
