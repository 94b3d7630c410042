"""The objectives: derivatives, agreement with the simulator, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.crystals import symmetry
from xtalnet_jax.crystals.crystal import Crystal, stack_crystals
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.pattern import CU_KALPHA, two_theta_from_inv_d
from xtalnet_jax.pxrd.profile import profile as render_profile
from xtalnet_jax.pxrd.reflections import reflections
from xtalnet_jax.refine import model, objective, prepare
from xtalnet_jax.refine.objective import Restraints, Target

EDGES = jnp.array([8.0, 80.0])
GRID = np.linspace(8.0, 80.0, 300)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def crystal() -> Crystal:
    rng = np.random.default_rng(3)
    lattice = np.array([[4.1, 0.2, 0.1], [0.3, 4.9, -0.4], [-0.5, 0.6, 3.7]])
    return Crystal(np.array([22, 8, 8]), rng.random((3, 3)), lattice)


def trials(crystals: list[Crystal], sizes: prepare.Sizes, contact: float = 0.9):
    free = [symmetry.freedom(c, symmetry.identity_operations(c)) for c in crystals]
    made = prepare.make_trials(crystals, free, 0.95, sizes, contact)
    return jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float64 if a.dtype == np.float32 else a.dtype), made
    )


SIZES = prepare.Sizes(3, 2, 256, 9)


def one(sizes: prepare.Sizes = SIZES):
    made = trials([crystal()], sizes)
    return jax.tree.map(lambda a: a[0], made)


def point(num_coord: int, seed: int = 0) -> jax.Array:
    """Variables away from every special value."""
    x = 0.01 * np.random.default_rng(seed).normal(size=11 + num_coord)
    x[7:11] = np.log(0.6), 0.3, 0.4, 0.5
    return jnp.asarray(x)


def observed(kind: str) -> Target:
    """A pattern of a slightly different crystal, on a sloping background."""
    trial = one()
    y = objective.profile(jnp.asarray(GRID), trial.frame, at(point(9, 1)), CU_KALPHA)
    y = 100 * y / y.max() + (5 + 0.05 * GRID if kind == "fine" else 0.0)
    grid, ones = jnp.asarray(GRID), jnp.ones(len(GRID))
    if kind == "coarse":
        root = jnp.sqrt(y)
        return Target(grid, root / jnp.linalg.norm(root), ones, jnp.zeros((len(GRID), 0)))
    terms = np.polynomial.chebyshev.chebvander(np.linspace(-1, 1, len(GRID)), 2)
    return Target(grid, y, 1 / jnp.sqrt(y), jnp.asarray(terms))


at = model.from_vector


def cost_fn(kind: str, restrained: bool = True):
    trial, target = one(), observed(kind)
    restraints = Restraints(
        trial.closest, jnp.asarray(0.3), jnp.full(20, 0.02), jnp.full(20, 0.001)
    )

    def cost(x: jax.Array) -> objective.Normal:
        if kind == "coarse":
            normal = objective.coarse_normal(trial.frame, at(x), CU_KALPHA, target, EDGES, 0.02)
        else:
            normal, _ = objective.fine_normal(trial.frame, at(x), CU_KALPHA, target)
        return objective.restrained(normal, trial.frame, x, restraints) if restrained else normal

    return cost


def test_sticks_are_those_of_the_simulator():
    trial, c = one(), crystal()
    found = reflections(stack_crystals([c]), np.asarray(trial.frame.hkl)[None], 2.0, b_iso=0.7)
    v = at(jnp.zeros(20))._replace(b_iso=jnp.asarray(0.7))
    two_theta, intensity = model.sticks(trial.frame, v, CU_KALPHA)
    real = np.asarray(trial.frame.multiplicity) > 0
    expected = two_theta_from_inv_d(np.asarray(found.inv_d[0]), CU_KALPHA)
    assert np.allclose(two_theta[real], expected[real], atol=1e-3)
    instrument = Instrument(u=0.0, w=0.36, eta=0.4)
    wanted = render_profile(
        jax.tree.map(lambda a: jnp.asarray(a[0], jnp.float64), found),
        jnp.asarray(GRID),
        CU_KALPHA,
        instrument,
    )
    v = v._replace(log_fwhm=jnp.log(0.6), eta=jnp.asarray(0.4))
    mine = objective.profile(jnp.asarray(GRID), trial.frame, v, CU_KALPHA)
    assert np.allclose(mine, wanted, atol=1e-4 * float(wanted.max()))
    assert np.all(np.asarray(intensity)[~real] == 0)


def test_profile_jacobian_is_the_derivative_of_the_profile():
    trial, x = one(), point(9)
    grid = jnp.asarray(GRID)
    s = model.sticks_with_derivatives(trial.frame, at(x), CU_KALPHA)
    value, jacobian = objective.profile_jacobian(grid, s, at(x))
    fn = lambda x: objective.profile(grid, trial.frame, at(x), CU_KALPHA)  # noqa: E731
    assert np.allclose(value, fn(x), rtol=1e-10)
    wanted = jax.jacfwd(fn)(x)
    assert float(abs(wanted).max(0).min()) > 0 or float(abs(wanted[:, 17:]).max()) == 0
    assert np.allclose(jacobian, wanted, atol=1e-9 * float(abs(wanted).max()))


@pytest.mark.parametrize("kind", ["coarse", "fine"])
def test_gradient_agrees_with_finite_differences(kind):
    cost = jax.jit(cost_fn(kind))
    x, h = point(9), 1e-5
    gradient = np.asarray(cost(x).gradient)
    eye = np.eye(len(x)) * h
    numeric = np.array([(cost(x + e).cost - cost(x - e).cost) / (2 * h) for e in eye]) / 2
    assert np.isfinite(gradient).all()
    assert np.allclose(gradient, numeric, atol=1e-5 * abs(numeric).max())
    assert (abs(numeric[:6]) > 1e-4).all()


def test_contacts_count_images_of_the_atom_itself():
    c = Crystal(np.array([22]), np.zeros((1, 3)), np.diag([2.0, 5.0, 5.0]))
    trial = jax.tree.map(lambda a: a[0], trials([c], prepare.Sizes(1, 1, 128, 3), contact=1.0))
    violation, jacobian = objective.short_contacts(trial.frame, jnp.zeros(14), trial.closest)
    assert float(violation[0]) == pytest.approx(2.8 - 2.0, abs=1e-3)
    by_strain = np.linalg.solve(np.asarray(trial.frame.cell_basis).T, jacobian[0, :6])
    assert np.allclose(by_strain, [-2.0, 0, 0, 0, 0, 0], atol=1e-3)  # strain xx lengthens a


@pytest.mark.parametrize("kind", ["coarse", "fine"])
def test_padding_changes_nothing(kind):
    target, x = observed(kind), point(9)
    values = []
    for sizes in (SIZES, prepare.Sizes(5, 4, 512, 15)):
        trial = one(sizes)
        num_coord = trial.frame.coord_basis.shape[-1]
        longer = jnp.concatenate([x, jnp.zeros(num_coord - 9)])
        restraints = Restraints(
            trial.closest, jnp.asarray(0.3), jnp.full(len(longer), 0.02), 0 * longer
        )
        if kind == "coarse":
            n = objective.coarse_normal(trial.frame, at(longer), CU_KALPHA, target, EDGES, 0.02)
        else:
            n, _ = objective.fine_normal(trial.frame, at(longer), CU_KALPHA, target)
        n = objective.restrained(n, trial.frame, longer, restraints)
        assert np.isfinite(n.matrix).all()
        assert not np.any(n.gradient[20:])
        values.append((n.cost, n.gradient[:20], n.matrix[:20, :20]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *values)


def test_scale_and_background_are_solved_exactly():
    trial, target = one(), observed("fine")
    x = point(9, 1)
    normal, linear = objective.fine_normal(trial.frame, at(x), CU_KALPHA, target)
    assert float(normal.cost) < 1e-12
    assert np.allclose(linear[1:], [5 + 0.05 * 44, 0.05 * 36, 0.0], atol=1e-6)
    shape = objective.profile(target.two_theta, trial.frame, at(x), CU_KALPHA)
    assert float(linear[0] * shape.max()) == pytest.approx(100.0, rel=1e-6)
