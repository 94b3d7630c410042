"""How strongly atoms scatter X-rays: form factors and the Lorentz-polarisation factor.

Neutral atoms, no anomalous dispersion. Two parametrisations are shipped as data
(``form_factors.json``, which names its sources): ``"pymatgen"``, the older one that pymatgen's
calculator uses, and ``"it92"``, that of International Tables C (1992).
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

MAX_ATOMIC_NUMBER = 98
"""Heaviest element in the form-factor tables (californium)."""

TABLES = ("pymatgen", "it92")


class FormFactors(NamedTuple):
    """f(s) = constant + sum_k amplitude_k * (s^2 if times_s2 else 1) * exp(-exponent_k s^2).

    Row z belongs to atomic number z; row 0 (padding) is zero, rows beyond the table are NaN.
    """

    constant: np.ndarray  # [119] electrons
    amplitude: np.ndarray  # [119, 4]
    exponent: np.ndarray  # [119, 4] angstrom^2
    times_s2: bool


@cache
def form_factor_table(table: str = "pymatgen") -> FormFactors:
    """Read one of the shipped parametrisations, ``"pymatgen"`` or ``"it92"``.

    Raises:
        ValueError: no such table.
    """
    if table not in TABLES:
        raise ValueError(f"no form-factor table {table!r}; the tables are {', '.join(TABLES)}")
    text = resources.files("xtalnet_jax.pxrd").joinpath("form_factors.json").read_text()
    rows = np.array(json.loads(text)[table]["rows"])
    constant = np.full(119, np.nan)
    amplitude, exponent = np.full((119, 4), np.nan), np.full((119, 4), np.nan)
    constant[0] = amplitude[0] = exponent[0] = 0.0
    tabulated = slice(1, len(rows) + 1)
    exponent[tabulated] = rows[:, 4:8]
    if table == "pymatgen":
        constant[tabulated] = np.arange(1, len(rows) + 1)
        amplitude[tabulated] = -41.78214 * rows[:, :4]
    else:
        constant[tabulated] = rows[:, 8]
        amplitude[tabulated] = rows[:, :4]
    return FormFactors(constant, amplitude, exponent, times_s2=table == "pymatgen")


def form_factors(atomic_numbers: jax.Array, s2: jax.Array, table: str = "pymatgen") -> jax.Array:
    """Form factors f in electrons for every pair of an element and a scattering angle.

    Args:
        atomic_numbers: [..., n_species] int; 0 gives 0, an element beyond the table gives NaN.
        s2: [..., n_hkl] (sin(theta)/lambda)^2 = 1/(4 d^2) in 1/angstrom^2.
        table: ``"pymatgen"`` or ``"it92"``.

    Returns:
        [..., n_species, n_hkl], of the dtype of ``s2``.
    """
    constant, amplitude, exponent, times_s2 = form_factor_table(table)
    take = lambda rows: jnp.asarray(rows, s2.dtype)[atomic_numbers]  # noqa: E731
    x = jnp.expand_dims(s2, -2)
    # A loop over the four terms keeps every array at [..., n_species, n_hkl].
    terms = zip(jnp.unstack(take(amplitude), axis=-1), jnp.unstack(take(exponent), axis=-1))
    total = sum(a[..., None] * jnp.exp(-b[..., None] * x) for a, b in terms)
    return take(constant)[..., None] + (x * total if times_s2 else total)


def check_tabulated(atomic_numbers: Any) -> None:
    """Refuse elements without a form factor (host).

    Raises:
        ValueError: an atomic number is not in 0..98.
    """
    z = np.asarray(atomic_numbers)
    bad = np.unique(z[(z < 0) | (z > MAX_ATOMIC_NUMBER)])
    if bad.size:
        raise ValueError(
            f"no X-ray form factor for atomic number {', '.join(map(str, bad))}; "
            f"the tables hold 1 to {MAX_ATOMIC_NUMBER}"
        )


def lorentz_polarisation(
    inv_d: ArrayLike, wavelength: ArrayLike, monochromator_cos2: ArrayLike = 1.0
) -> jax.Array:
    """LP = (1 + C cos^2 2theta) / (sin^2 theta cos theta) of a powder diffractometer.

    C = cos^2 of the monochromator's own 2theta (1: none, unpolarised beam), without the
    constant 2/(1 + C); International Tables C, section 6.2.

    Args:
        inv_d: [...] 1/d in 1/angstrom.
        wavelength: angstrom, broadcast against ``inv_d``.
        monochromator_cos2: C.

    Returns:
        Like ``inv_d``; 0 with gradient 0 where 1/d is 0 or out of reach (sin theta >= 1).
    """
    sin = 0.5 * jnp.asarray(inv_d) * wavelength
    inside = (sin > 0) & (sin < 1)
    sin2 = jnp.where(inside, sin, 0.5) ** 2
    cos_2theta = 1.0 - 2.0 * sin2
    factor = (1.0 + monochromator_cos2 * cos_2theta**2) / (sin2 * jnp.sqrt(1.0 - sin2))
    return jnp.where(inside, factor, 0.0)
