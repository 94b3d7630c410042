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

pytestmark = pytest.mark.optimised

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
    """One step to the rounding of float32; after 40 chained evaluations, to what that has grown to.

    The network of "large" amplifies: a difference of lattices of 3e-7 after the first step is 1e-5
    after seven, and 4e-6 to 8e-5 at the end, by how the processor groups sums of products.
    """
    with jax.default_matmul_precision("highest"):
        states, expected, mask = trajectory(golden, name, "f32")
    for steps, bound in ((1, 2e-6), (20, 5e-4)):
        of_reference = tuple(x[:steps] for x in expected["f64"])
        found = largest_errors([x[:steps] for x in states[:2]], of_reference, mask)
        own = largest_errors([x[:steps] for x in expected["f32"]], of_reference, mask)
        print(f"{name}, {steps} steps: coordinates and lattices {found}; the reference's own {own}")
        assert max(found) < bound
