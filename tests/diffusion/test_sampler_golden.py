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


LANGEVIN_STEP = 1e-5 * (float(np.float32(0.005)) / 0.005) ** 2
"""The reference divides by its configured 0.005, our table holds what float32 makes of it."""


def trajectory(golden, name, kind):
    """Our states after every step and the reference's, with the mask of the real atoms."""
    dtype = {"f32": jnp.float32, "f64": jnp.float64}[kind]

    def cast(x):
        x = np.asarray(x)
        return jnp.asarray(x, dtype if x.dtype.kind == "f" else x.dtype)

    case = golden_case(golden, name)
    data = np.load(golden / f"narrow_sampler20_{name}.npz")
    params, config = load_reference(golden / "narrow_ccsg_state.npz")
    model = CCSG(**{k: v for k, v in config.items() if k != "model"})
    peaks = PeakBatch(
        cast(case.inputs["peak_id"].astype(float)),
        cast(case.inputs["peak_intensity"]),
        jnp.asarray(case.inputs["peak_mask"]),
        jnp.ones((len(case.inputs["num_atoms"]), 2), dtype),
    )
    start = SamplerState(
        cast(case.dense(data["noise/x_T"])), cast(data["noise/l_T"]), jnp.int32(20)
    )
    noise = StepNoise(
        cast(case.dense(data["noise/corr_x"])),
        cast(case.dense(data["noise/pred_x"])),
        cast(data["noise/pred_l"]),
    )
    schedules = Schedules(*(cast(data[f"sched/{k}"]) for k in TABLES))

    @jax.jit
    def run(params, peaks, numbers):
        condition = model.apply(params, peaks, method="condition")

        def denoise(x, lattice, t):
            return model.apply(params, condition, numbers, x, lattice, t, method="denoise")

        given = {"start": start, "step_noise": noise, "trajectory": True}
        key = jax.random.key(0)
        return sample(key, denoise, numbers, schedules, langevin_step=LANGEVIN_STEP, **given)

    found, states = run(jax.tree.map(cast, params), peaks, case.batch.atomic_numbers)
    assert states.frac_coords.dtype == dtype
    np.testing.assert_array_equal(found.lattice, states.lattice[-1])
    expected = {
        k: (case.dense(data[f"{k}/all_frac_coords"])[1:], data[f"{k}/all_lattices"][1:])
        for k in ("f32", "f64")
    }
    return states, expected, case.batch.node_mask[None, :, :, None]


def largest_errors(one, other, mask):
    """Largest difference of fractional coordinates, and of lattices relative to their size."""
    coords = np.abs(torus.wrap(np.asarray(one[0], float) - np.asarray(other[0], float)) * mask)
    size = np.abs(other[1]).max((1, 2, 3), keepdims=True)
    return coords.max(), np.abs((np.asarray(one[1], float) - other[1]) / size).max()


@pytest.mark.parametrize("name", ["small", "large", "edge"])
def test_trajectory_of_the_reference_in_double_precision(golden, name):
    with jax.enable_x64(True):
        states, expected, mask = trajectory(golden, name, "f64")
        assert max(largest_errors(states[:2], expected["f64"], mask)) < 1e-11


@pytest.mark.parametrize("name", ["small", "large", "edge"])
def test_trajectory_of_the_reference_in_single_precision(golden, name):
    """40 chained network evaluations: to 2e-5, or as close as the reference is to itself.

    Sums of products are rounded as the processor's units group them: with AVX-512 the largest error
    is below 1e-5, with AVX2 it was 1.5e-5.
    """
    with jax.default_matmul_precision("highest"):
        states, expected, mask = trajectory(golden, name, "f32")
    found = largest_errors(states[:2], expected["f64"], mask)
    own = largest_errors(expected["f32"], expected["f64"], mask)
    print(f"{name}: coordinates {found[0]:.1e}, lattices {found[1]:.1e}; the reference's own {own}")
    for error, rounding in zip(found, own):
        assert error < max(2e-5, 2 * rounding)
