"""Cells: the reference's frame, round trips, reciprocal lattice, the logarithm of the metric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.crystals import lattice as lm


def cells(n: int = 50) -> jax.Array:
    rng = np.random.default_rng(0)
    lengths, angles = rng.uniform(2, 20, (n, 3)), rng.uniform(65, 115, (n, 3))
    return lm.matrix_from_parameters(jnp.asarray(lengths), jnp.asarray(angles))


def test_frame_is_that_of_the_reference(golden):
    data = np.load(golden / "lattice.npz")
    ours = lm.matrix_from_parameters(jnp.asarray(data["lengths"]), jnp.asarray(data["angles"]))
    np.testing.assert_allclose(ours, data["matrix"], atol=2e-5 * np.abs(data["matrix"]).max())
    lengths, angles = lm.parameters_from_matrix(jnp.asarray(data["random_matrix"]))
    np.testing.assert_allclose(lengths, data["random_matrix_lengths"], rtol=1e-5)
    np.testing.assert_allclose(angles, data["random_matrix_angles"], atol=2e-3)


def test_frame_is_that_of_pymatgen():
    from pymatgen.core import Lattice

    ours = lm.matrix_from_parameters(jnp.array([3.0, 4.0, 5.0]), jnp.array([80.0, 95.0, 110.0]))
    theirs = Lattice.from_parameters(3, 4, 5, 80, 95, 110).matrix
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_parameters_round_trip_and_batching():
    cell = cells()
    again = lm.matrix_from_parameters(*lm.parameters_from_matrix(cell))
    np.testing.assert_allclose(again, cell, atol=1e-3)
    np.testing.assert_allclose(lm.volume(cell), np.abs(np.linalg.det(cell)), rtol=1e-5)
    stacked = cell.reshape(5, 10, 3, 3)
    np.testing.assert_array_equal(lm.metric_tensor(stacked)[2, 3], lm.metric_tensor(cell)[23])


def test_reciprocal_is_the_dual_basis():
    cell = cells()
    product = jnp.einsum("nij,nkj->nik", cell, lm.reciprocal(cell))
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-5)


def test_spacings_of_known_cells():
    hkl = jnp.array([[1, 0, 0], [1, 1, 0], [0, 0, 2], [0, 0, 0]])
    hexagonal = lm.matrix_from_parameters(
        jnp.array([3.0, 3.0, 5.0]), jnp.array([90.0, 90.0, 120.0])
    )
    expected = [2 / np.sqrt(3) / 3, 2 / 3, 0.4, 0.0]
    np.testing.assert_allclose(lm.inv_d(hkl, hexagonal), expected, atol=1e-6)
    slope = jax.grad(lambda cell: lm.inv_d(hkl, cell).sum())(hexagonal)
    assert jnp.isfinite(slope).all()


def test_log_metric_is_the_matrix_logarithm():
    linalg = pytest.importorskip("scipy.linalg")
    cell = cells(6)
    ours = lm.log_metric(cell)
    for six, one in zip(np.asarray(ours), np.asarray(cell, float)):
        s = linalg.logm(one @ one.T).real / 2
        np.testing.assert_allclose(
            six, [s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]], atol=2e-5
        )
    np.testing.assert_allclose(ours[:, :3].sum(-1), jnp.log(lm.volume(cell)), rtol=1e-5)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    np.testing.assert_allclose(lm.log_metric(cell @ rotation), ours, atol=2e-5)


def test_log_metric_round_trip_keeps_metric_and_frame():
    cell = cells()
    again = lm.lattice_from_log_metric(lm.log_metric(cell))
    np.testing.assert_allclose(again, cell, atol=1e-4 * float(jnp.abs(cell).max()))


def test_every_six_numbers_are_a_cell():
    six = jnp.asarray(np.random.default_rng(0).normal(size=(200, 6)) * 1.5)
    cell = lm.lattice_from_log_metric(six)
    assert jnp.isfinite(cell).all()
    assert (jnp.linalg.det(cell) > 0).all()
    volume = lm.volume(lm.lattice_from_log_metric(six / 2))  # float32 loses flatter cells' volume
    np.testing.assert_allclose(jnp.log(volume), six[:, :3].sum(-1) / 2, atol=2e-3)
    assert (cell[:, 0, 1] == 0).all()
    assert (cell[:, 2, :2] == 0).all()


def test_gradient_is_right_at_a_cube():
    with jax.enable_x64(True):
        cube = lm.log_metric(jnp.eye(3) * 4.0)
        jacobian = jax.jacobian(lm.lattice_from_log_metric)(cube)
        assert jnp.isfinite(jacobian).all()
        for k in range(6):
            step = jnp.zeros(6).at[k].set(1e-6)
            ends = [lm.lattice_from_log_metric(cube + s * step) for s in (1, -1)]
            np.testing.assert_allclose(jacobian[..., k], (ends[0] - ends[1]) / 2e-6, atol=1e-7)


def test_flat_cell_has_finite_gradient():
    flat = jnp.array([60.0, 60.0, 120.0])  # alpha + beta = gamma
    slope = jax.grad(lambda a: lm.matrix_from_parameters(jnp.ones(3) * 4, a).sum())(flat)
    assert jnp.isfinite(slope).all()
