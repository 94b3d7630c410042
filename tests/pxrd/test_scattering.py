"""Form factors and the Lorentz-polarisation factor against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.pxrd import scattering


@pytest.mark.parametrize("table", scattering.TABLES)
def test_forward_scattering_counts_the_electrons(table):
    z = np.arange(1, 99)
    f = np.asarray(scattering.form_factors(jnp.asarray(z), jnp.zeros(1), table))[:, 0]
    # Exact in the older form; the fit of the International Tables is good to 0.1 electron there.
    np.testing.assert_allclose(f, z, atol=1e-4 if table == "pymatgen" else 0.1)


def test_tables_are_those_of_pymatgen_and_gemmi():
    gemmi = pytest.importorskip("gemmi")
    from pymatgen.analysis.diffraction.xrd import ATOMIC_SCATTERING_PARAMS as PARAMS

    s2 = np.linspace(0, 0.4, 9)
    for symbol in ("H", "C", "Ti", "Sn", "U"):
        element = gemmi.Element(symbol)
        ours = {
            t: np.asarray(
                scattering.form_factors(jnp.array([element.atomic_number]), jnp.asarray(s2), t)
            )[0]
            for t in scattering.TABLES
        }
        a, b = np.array(PARAMS[symbol]).T
        old = element.atomic_number - 41.78214 * s2 * (a * np.exp(-b * s2[:, None])).sum(-1)
        new = [element.it92.calculate_sf(x) for x in s2]
        np.testing.assert_allclose(ours["pymatgen"], old, atol=2e-5 * element.atomic_number)
        np.testing.assert_allclose(ours["it92"], new, atol=2e-5 * element.atomic_number)


def test_padding_scatters_nothing_and_unknown_elements_show():
    f = scattering.form_factors(jnp.array([[0, 118]]), jnp.full((1, 3), 0.1))
    assert (f[0, 0] == 0).all()
    assert jnp.isnan(f[0, 1]).all()
    with pytest.raises(ValueError, match="118"):
        scattering.check_tabulated(np.array([6, 118]))
    with pytest.raises(ValueError, match="pymatgen, it92"):
        scattering.form_factor_table("cromer")


def test_lorentz_polarisation_known_values_and_limits():
    # 2 theta = 90: (1 + 0) / (sin^2 45 cos 45) = 2 sqrt 2; 60 degrees: (1 + 1/4) / (1/4 sqrt(3)/2).
    inv_d = 2 * np.sin(np.deg2rad([45.0, 30.0]))
    lp = scattering.lorentz_polarisation(jnp.asarray(inv_d), 1.0)
    np.testing.assert_allclose(lp, [2 * np.sqrt(2), 10 / np.sqrt(3)], rtol=1e-6)
    # A monochromator at 2 theta_m = 90 removes one polarisation: the cos^2 term goes.
    np.testing.assert_allclose(
        scattering.lorentz_polarisation(jnp.asarray(inv_d), 1.0, 0.0)[1], 8 / np.sqrt(3), rtol=1e-6
    )
    dangerous = jnp.array([0.0, 2.0, 3.0])
    value, slope = jax.vmap(jax.value_and_grad(scattering.lorentz_polarisation), (0, None))(
        dangerous, 1.0
    )
    assert (value == 0).all()
    assert (slope == 0).all()
