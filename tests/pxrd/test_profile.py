"""Line shapes, positions, texture and the two ways of summing lines on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.pxrd import profile as pr
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.pattern import Lines

CU = 1.54184


def some_lines(num_padded: int = 0) -> Lines:
    inv_d = np.array([0.21, 0.35, 0.3512, 0.52, 0.7, 0.88])
    strength = np.array([0.3, 1.0, 0.4, 0.2, 0.6, 0.1])
    return Lines(*(jnp.asarray(np.pad(v, (0, num_padded))) for v in (inv_d, strength)))


def test_pseudo_voigt_has_unit_area_and_its_width():
    grid = jnp.linspace(-60, 60, 240001)
    for eta in (0.0, 0.4, 1.0):
        shape = pr.pseudo_voigt(grid, jnp.asarray(0.3), jnp.asarray(eta))
        tails = eta * 0.3 / (np.pi * 60)  # of the Lorentzian, outside of the grid
        assert float(shape.sum()) * 5e-4 == pytest.approx(1 - tails, abs=3e-4)
        half = pr.pseudo_voigt(jnp.asarray([0.0, 0.15]), jnp.asarray(0.3), jnp.asarray(eta))
        assert float(half[1] / half[0]) == pytest.approx(0.5, rel=1e-5)


def test_thompson_cox_hastings_is_near_a_voigt():
    special = pytest.importorskip("scipy.special")
    for gauss, lorentz in ((1.0, 0.0), (0.0001, 1.0), (1.0, 1.0), (1.0, 0.3)):
        fwhm, eta = pr.thompson_cox_hastings(jnp.asarray(gauss), jnp.asarray(lorentz))
        x = np.linspace(-5, 5, 2001)
        voigt = special.voigt_profile(x, gauss / np.sqrt(8 * np.log(2)), lorentz / 2)
        ours = np.asarray(pr.pseudo_voigt(jnp.asarray(x), fwhm, eta))
        np.testing.assert_allclose(ours, voigt, atol=0.013 * voigt.max())
    assert float(pr.thompson_cox_hastings(jnp.asarray(0.2), jnp.asarray(0.0))[0]) == pytest.approx(
        0.2
    )


def test_widths_follow_the_polynomials():
    angle = jnp.asarray([20.0, 60.0, 100.0])
    tan, cos = np.tan(np.deg2rad(np.asarray(angle) / 2)), np.cos(np.deg2rad(np.asarray(angle) / 2))
    fwhm, eta = pr.widths(angle, Instrument(u=0.02, v=-0.01, w=0.008, eta=0.3))
    np.testing.assert_allclose(fwhm, np.sqrt(0.02 * tan**2 - 0.01 * tan + 0.008), rtol=1e-5)
    np.testing.assert_allclose(eta, 0.3, rtol=1e-6)
    lorentzian, eta = pr.widths(angle, Instrument(w=1e-12, x=0.1, y=0.2))
    np.testing.assert_allclose(lorentzian, 0.1 / cos + 0.2 * tan, rtol=2e-2)
    assert (eta > 0.97).all()
    assert jnp.isfinite(pr.widths(angle, Instrument(w=-1.0))[0]).all()


def test_positions_and_shifts():
    inv_d = jnp.asarray([0.4, 0.0, 1.4])
    plain = pr.positions(inv_d, CU, Instrument())
    assert float(plain[0]) == pytest.approx(2 * np.rad2deg(np.arcsin(0.2 * CU)), abs=1e-4)
    shifted = pr.positions(inv_d, CU, Instrument(zero_shift=0.05, displacement=-0.2))
    cos = np.cos(np.arcsin(0.2 * CU))
    assert float(shifted[0] - plain[0]) == pytest.approx(0.05 - 0.2 * cos, abs=1e-4)
    slope = jax.grad(lambda q: pr.positions(q, CU, Instrument()).sum())(inv_d)
    assert jnp.isfinite(slope).all()
    assert (slope[1:] == 0).all()


def test_fast_and_exact_rendering_agree():
    rng = np.random.default_rng(0)
    two_theta = jnp.asarray(rng.uniform(6, 89, 60))
    intensity = jnp.asarray(rng.exponential(size=60))
    start, step, num = 5.0, 0.02, 4251
    fast_form = jax.jit(pr.render_uniform, static_argnums=(2, 3, 4))
    grid = start + step * jnp.arange(num)
    for fwhm, eta in ((0.1, 0.5), (0.3, 1.0), (0.12, 0.0)):
        width, fraction = jnp.full(60, fwhm), jnp.full(60, eta)
        exact = jax.jit(pr.render)(grid, two_theta, intensity, width, fraction)
        fast = fast_form(two_theta, intensity, start, step, num, fwhm, eta)
        assert float(jnp.abs(fast - exact).max() / exact.max()) < 1e-3
    # and both against the plain sum
    shapes = pr.pseudo_voigt(
        grid[:, None] - two_theta[None, :], jnp.asarray(0.12), jnp.asarray(0.0)
    )
    plain = (shapes * intensity[None, :]).sum(-1)
    np.testing.assert_allclose(exact, plain, atol=1e-4 * float(plain.max()))


def test_lines_outside_of_the_grid_stay_outside():
    args = (10.0, 0.02, 500, 0.1, 0.5)
    inside = pr.render_uniform(jnp.asarray([15.0]), jnp.asarray([1.0]), *args)
    more = pr.render_uniform(jnp.asarray([15.0, 3.0, 25.0, 9.99]), jnp.ones(4), *args)
    np.testing.assert_array_equal(inside, more)


def test_padding_changes_neither_profile_nor_gradient():
    grid = jnp.linspace(10.0, 90.0, 801)

    def value(inv_d, strength):
        return (
            pr.profile(Lines(inv_d, strength), grid, CU, Instrument(kalpha2_ratio=0.5)) ** 2
        ).sum()

    with_gradient = jax.jit(jax.value_and_grad(value, (0, 1)))
    one, gradient = with_gradient(*some_lines())
    two, gradient_padded = with_gradient(*some_lines(5))
    assert float(one) == pytest.approx(float(two), rel=1e-5)
    for a, b in zip(gradient, gradient_padded):
        np.testing.assert_allclose(b[:6], a, rtol=1e-4)
        assert (b[6:] == 0).all()


def test_texture_has_mean_one_and_favours_its_planes():
    rng = np.random.default_rng(0)
    cell = np.diag([3.0, 4.0, 5.0])
    directions = rng.normal(size=(40000, 3))
    # planes with normals spread evenly: hkl = n @ lattice^T for q = hkl @ reciprocal
    hkl = directions / np.linalg.norm(directions, axis=1, keepdims=True) @ cell.T
    factor = pr.march_dollase(jnp.asarray(hkl), jnp.asarray(cell), 0.6, (0, 0, 1))
    assert float(factor.mean()) == pytest.approx(1.0, abs=4 * float(factor.std()) / 200)
    poles = jnp.asarray([[0.0, 0, 1], [0, 0, -3], [1, 0, 0], [0, 0, 0]])
    factor = pr.march_dollase(poles, jnp.asarray(cell), 0.6, (0, 0, 1))
    np.testing.assert_allclose(factor[:3], [0.6**-3, 0.6**-3, 0.6**1.5], rtol=1e-5)
    np.testing.assert_allclose(
        pr.march_dollase(poles, jnp.asarray(cell), 1.0, (0, 1, 1)), 1.0, rtol=1e-6
    )


def test_kalpha2_is_a_second_weaker_pattern():
    lines = some_lines()
    two_theta, intensity = pr.sticks(lines, 1.5406, Instrument(kalpha2_ratio=0.5))
    assert two_theta.shape == (12,)
    assert (two_theta[6:] > two_theta[:6]).all()
    np.testing.assert_allclose(intensity[6:] / intensity[:6], 0.5, rtol=2e-2)
    assert pr.sticks(lines, 1.5406, Instrument())[0].shape == (6,)


def test_chebyshev_background():
    grid = jnp.linspace(5.0, 90.0, 101)
    expected = np.polynomial.chebyshev.chebval(np.linspace(-1, 1, 101), [3.0, 1.0, -2.0, 0.5])
    np.testing.assert_allclose(pr.chebyshev(grid, (3.0, 1.0, -2.0, 0.5)), expected, atol=1e-5)
    assert (pr.chebyshev(grid, ()) == 0).all()


@pytest.mark.parametrize("eta", [None, 0.4])
def test_gradients_of_every_instrument_parameter(eta):
    start = {
        "u": 0.01,
        "v": -0.004,
        "w": 0.02,
        "x": 0.05,
        "y": 0.03,
        "zero_shift": 0.02,
        "displacement": -0.05,
        "kalpha2_ratio": 0.45,
        "kalpha2_wavelength": 1.5444,
        "monochromator_cos2": 0.8,
        "texture": 0.8,
        "b_iso": 0.6,
    }
    with jax.enable_x64(True):
        lines = some_lines(2)
        grid = jnp.linspace(12.0, 88.0, 761)
        cell = jnp.asarray([[4.0, 0, 0], [0.5, 5, 0], [0.3, 0.2, 6]])
        hkl = jnp.asarray(
            [[0, 0, 1], [1, 0, 0], [0, 1, 1], [1, 1, 1], [2, 0, 1], [1, 2, 3], [0, 0, 0], [0, 0, 0]]
        )

        def value(parameters):
            background = parameters["background"]
            fields = {k: v for k, v in parameters.items() if k != "background"}
            instrument = Instrument(**fields | ({} if eta is None else {"eta": fields["eta"]}))
            texture = pr.march_dollase(hkl, cell, instrument.texture, (1, 0, 1))
            textured = lines._replace(strength=lines.strength * texture)
            calculated = pr.profile(textured, grid, 1.5406, instrument)
            calculated = calculated + pr.chebyshev(grid, background)
            return (calculated * jnp.cos(grid * 0.7)).sum() / 100

        at = {k: jnp.asarray(v) for k, v in start.items()}
        at["background"] = jnp.asarray([1.0, 0.5, 0.2])
        if eta is not None:
            at["eta"] = jnp.asarray(eta)
        gradient = jax.jit(jax.grad(value))(at)
        compiled = jax.jit(value)
        for name, base in at.items():
            step = 1e-6
            direction = jnp.cos(jnp.arange(base.size, dtype=base.dtype)).reshape(base.shape)
            up, down = (compiled(at | {name: base + s * direction}) for s in (step, -step))
            expected = float((up - down) / (2 * step))
            assert float((gradient[name] * direction).sum()) == pytest.approx(
                expected, rel=1e-5, abs=1e-7
            ), name
        unused = {"x", "y"} if eta is not None else set()
        assert all(float(jnp.abs(g).max()) > 1e-6 for k, g in gradient.items() if k not in unused)
