"""The damped Gauss-Newton step on functions with known minima."""

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.refine import minimise
from xtalnet_jax.refine.objective import Normal


def normal_of(residual_fn):
    def cost(x: jax.Array) -> Normal:
        r, j = residual_fn(x), jax.jacfwd(residual_fn)(x)
        return Normal(r @ r, r @ r, j.T @ r, j.T @ j)

    return cost


def rosenbrock(x: jax.Array) -> jax.Array:
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0], 0.0 * x[2]])


def run(cost, x, active, limit, num_steps):
    def body(state, _):
        state = minimise.step(state, cost, active, limit)
        return state, (state.normal.cost, state.best)

    return jax.jit(lambda x: jax.lax.scan(body, minimise.init(x), None, length=num_steps))(x)


def test_valley_is_followed_to_the_minimum_and_the_cost_never_rises():
    start = jnp.array([-1.2, 1.0, 7.0])
    state, (costs, _) = run(normal_of(rosenbrock), start, jnp.ones(3), jnp.ones(3), 60)
    assert np.allclose(state.best[:2], 1.0, atol=1e-3)
    assert float(state.best[2]) == 7.0  # a variable that nothing depends on stays
    assert (np.diff(costs) <= 0).all()
    assert float(costs[0]) > 20


def test_held_variables_stay_and_steps_are_limited():
    start = jnp.array([-1.2, 1.0, 0.0])
    active, limit = jnp.array([1.0, 0.0, 1.0]), jnp.array([0.05, 1.0, 1.0])
    state, (_, path) = run(normal_of(rosenbrock), start, active, limit, 60)
    assert float(state.best[1]) == 1.0
    assert float(abs(jnp.diff(path[:, 0])).max()) <= 0.05 + 1e-6
    assert float(state.best[0]) != -1.2


def test_linear_least_squares_needs_one_undamped_step():
    rng = np.random.default_rng(0)
    a, b = jnp.asarray(rng.normal(size=(9, 4))), jnp.asarray(rng.normal(size=9))
    state = minimise.init(jnp.zeros(4), damping=0.0)
    cost = normal_of(lambda x: a @ x - b)
    for _ in range(2):
        state = minimise.step(state, cost, jnp.ones(4), jnp.full(4, 1e3))
    wanted = np.linalg.lstsq(np.asarray(a), np.asarray(b))[0]
    assert np.allclose(state.best, wanted, atol=1e-3)


def test_not_a_number_is_never_accepted():
    cost = normal_of(lambda x: jnp.where(x > -0.5, x - 3.0, jnp.nan))
    state = minimise.init(jnp.array([0.0]))._replace(trial=jnp.array([-1.0]))
    state = minimise.step(state, cost, jnp.ones(1), jnp.ones(1))
    assert float(state.best[0]) == 0.0
