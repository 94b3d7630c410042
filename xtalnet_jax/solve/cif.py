"""A candidate as a CIF: symmetry, refined parameters, how it was made, and the powder pattern.

Names of items are those of the IUCr core and powder dictionaries (``_pd_``); what these have no
name for is called ``_xtalnet_``.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.pxrd.io import assumptions
from xtalnet_jax.solve.solution import Candidate, Solution
from xtalnet_jax.version import __version__

SYMPREC = 0.1
"""Angstrom within which the structures are symmetrised."""


class Setting(NamedTuple):
    """A structure as it is shown to people."""

    structure: Any  # ``pymatgen.core.Structure``, the conventional cell if symmetrised
    symmetrised: bool
    moved: float  # angstrom, the farthest move of an atom by symmetrising


def conventional(candidate: Candidate) -> Setting:
    """Symmetrise at 0.1 angstrom in the conventional cell, where that keeps the structure.

    Where it does not, because close atoms would merge, the structure stays as it was refined.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
    from spglib.error import SpglibError

    structure = candidate.structure
    as_it_is = Setting(structure, False, 0.0)
    if candidate.space_group == "P1":
        return as_it_is
    try:
        refined = SpacegroupAnalyzer(structure, symprec=SYMPREC).get_refined_structure()
    except (TypeError, ValueError, SpglibError):  # the search gives up on an odd cell
        return as_it_is
    distances = StructureMatcher(scale=False).get_rms_dist(structure, refined)
    if distances is None:
        return as_it_is
    per_atom = (structure.volume / len(structure)) ** (1 / 3)  # what the matcher divides by
    return Setting(refined, True, float(distances[1]) * per_atom)


def cif_text(
    candidate: Candidate, solution: Solution, rank: int, setting: Setting, profile: bool = False
) -> str:
    """Return one block: the structure, how it was made, and on request the powder profile.

    Args:
        candidate: what to write.
        solution: where it comes from.
        rank: its place, from 1.
        setting: from `conventional`.
        profile: add the measured and the calculated pattern and the background.
    """
    from gemmi import cif
    from pymatgen.io.cif import CifWriter

    text = str(CifWriter(setting.structure, symprec=SYMPREC if setting.symmetrised else None))
    document = cif.read_string(text)
    block = document.sole_block()
    block.name = f"xtalnet_{rank:02d}_{block.name}"
    for name, value in _made_by(candidate, solution, rank, setting).items():
        block.set_pair(name, _quoted(value))
    _add_fit(block, candidate, solution, setting)
    if profile:
        _add_pattern(block, candidate, solution)
    head = (
        f"# xtalnet_jax {__version__}, candidate {rank}: R_wp {candidate.rwp:.4f}, "
        f"confidence {candidate.confidence:.3f}, verdict {solution.verdict}\n"
    )
    return head + document.as_string()


def with_esd(value: float, esd: float | None) -> str:
    """A number with its standard uncertainty in the last digits, as in ``3.9885(2)``.

    Example:
        >>> with_esd(3.98849, 0.00021), with_esd(90.0, 0.0), with_esd(0.512, 0.19)
        ('3.9885(2)', '90', '0.51(19)')
    """
    if esd is None or not np.isfinite(esd) or not 0 < esd < 1e3:
        return f"{value:.6g}"
    digits = max(0, -int(np.floor(np.log10(esd))))
    if esd * 10**digits < 1.95:  # up to 19: one more digit, so that rounding loses little
        digits += 1
    return f"{value:.{digits}f}({max(round(esd * 10**digits), 1)})"


def _made_by(
    candidate: Candidate, solution: Solution, rank: int, setting: Setting
) -> dict[str, str]:
    program = f"xtalnet_jax {__version__}"
    weights = solution.settings.get("weights", "?")
    details = [
        "Atoms, cell and one B against the whole profile"
        if _is_refined(solution)
        else "Not refined; only the profile's scale, background, widths and zero shift were fitted",
        f"symmetrised within {SYMPREC:g} angstrom after that, moving atoms by at most "
        f"{setting.moved:.3f} angstrom"
        if setting.symmetrised
        else "written without symmetry",
    ]
    return {
        "_audit_creation_method": f"{program}, proposed by a generator and ranked, not curated",
        "_computing_structure_solution": (
            f"{program}, weights {weights}, seed {solution.settings.get('seed', '?')}"
        ),
        "_computing_structure_refinement": program,
        "_refine_special_details": "; ".join(details),
        "_xtalnet_rank": str(rank),
        "_xtalnet_verdict": solution.verdict,
        "_xtalnet_confidence": f"{candidate.confidence:.4f}",
        "_xtalnet_similarity": f"{candidate.similarity:.4f}",
        "_xtalnet_votes": str(candidate.votes),
        "_xtalnet_settings": json.dumps(dict(solution.settings), default=str),
        "_xtalnet_assumptions": "; ".join(assumptions(solution.pattern)) or "none",
    }


def _is_refined(solution: Solution) -> bool:
    return bool(solution.settings.get("refine", False))


def _add_fit(block: Any, candidate: Candidate, solution: Solution, setting: Setting) -> None:
    """R_wp, cell with uncertainties, B of the atoms, and the parameters of the profile."""
    fit = candidate.fit
    if np.isfinite(candidate.rwp):
        block.set_pair("_pd_proc_ls_prof_wR_factor", f"{candidate.rwp:.5f}")
    block.set_pair("_diffrn_radiation_probe", "x-ray")
    block.set_pair("_diffrn_radiation_wavelength", f"{solution.pattern.wavelength:.6f}")
    if fit is None:
        return
    names = [f"_cell_length_{k}" for k in "abc"]
    names += [f"_cell_angle_{k}" for k in ("alpha", "beta", "gamma")]
    lattice = setting.structure.lattice
    for name, value, esd in zip(names, lattice.parameters, cell_esd(lattice, fit)):
        block.set_pair(name, with_esd(value, esd))
    if _is_refined(solution):  # beside cell and atoms: zero, two widths, share, B, scale
        number = fit.num_free + 6 + len(fit.background)
        block.set_pair("_refine_ls_number_parameters", str(number))
    block.set_pair(
        "_pd_proc_ls_profile_function",
        _quoted(
            "pseudo-Voigt, FWHM^2 = w^2 + (t tan theta)^2: "
            f"w = {with_esd(fit.fwhm, fit.esd.get('fwhm'))} degrees, "
            f"t = {with_esd(fit.fwhm_tan, fit.esd.get('fwhm_tan'))} degrees, "
            f"Lorentzian share {with_esd(fit.eta, fit.esd.get('eta'))}"
        ),
    )
    block.set_pair(
        "_pd_proc_ls_background_function",
        _quoted(
            "Chebyshev polynomial over the measured range, coefficients "
            + ", ".join(f"{c:.5g}" for c in fit.background)
        ),
    )
    # The dictionary's offset is what to add to the measured angle; ours is by how much lines move.
    shift = with_esd(-fit.zero_shift, fit.esd.get("zero_shift"))
    block.set_pair("_pd_calib_2theta_offset", shift)
    if _is_refined(solution):
        loop = block.find_loop("_atom_site_label").get_loop()
        loop.add_columns(["_atom_site_B_iso_or_equiv", "_atom_site_adp_type"], "?")
        b_iso = with_esd(fit.b_iso, fit.esd.get("b_iso"))
        for row in block.find(["_atom_site_B_iso_or_equiv", "_atom_site_adp_type"]):
            row[0], row[1] = b_iso, "Biso"


def cell_esd(lattice: Any, fit: Any) -> list[float | None]:
    """Uncertainties of the six parameters of a cell that was brought into a standard setting.

    They are known where the axes are those of the refined cell in another order, and for cubic
    cells, which have one parameter; for other centred cells they are None.
    """
    cell, esd = np.asarray(fit.cell, float), np.asarray(fit.cell_esd, float)
    mine = np.array(lattice.parameters)
    axes: list[int] = []
    for k in range(3):
        near = [j for j in range(3) if j not in axes and abs(mine[k] - cell[j]) < 2e-3 * cell[j]]
        axes += near[:1]
    if len(axes) == 3:
        order = [*axes, *(3 + a for a in axes)]
        same = np.abs(np.abs(mine[3:] - 90) - np.abs(cell[order][3:] - 90)) < 0.2
        if same.all():
            return [float(v) if v > 0 else None for v in esd[order]]
    if np.ptp(mine[:3]) < 1e-4 * mine[0] and np.abs(mine[3:] - 90).max() < 1e-3:
        relative = float(np.mean(esd[:3] / cell[:3]))
        return [relative * float(v) if relative > 0 else None for v in mine[:3]] + [None] * 3
    return [None] * 6


def _add_pattern(block: Any, candidate: Candidate, solution: Solution) -> None:
    """The measured and calculated profile in the items of the powder dictionary."""
    pattern = solution.pattern
    x = np.asarray(pattern.two_theta, float)
    pairs = {
        "_pd_meas_number_of_points": str(len(x)),
        "_pd_meas_2theta_range_min": f"{x[0]:.6g}",
        "_pd_meas_2theta_range_max": f"{x[-1]:.6g}",
        "_pd_calc_method": "Rietveld refinement with one scale and one B",
        "_pd_meas_special_details": f"file {pattern.meta.get('file', '?')}",
    }
    if candidate.fit is None:
        del pairs["_pd_calc_method"]
    for name, value in pairs.items():
        block.set_pair(name, _quoted(value))
    of = candidate.calculated.two_theta
    kind = "proc" if "stripped" in pattern.meta else "meas"  # without K-alpha2 it is processed
    if kind == "proc":
        block.set_pair("_pd_proc_info_data_reduction", _quoted("K-alpha2 removed (Rachinger)"))
    columns: dict[str, Any] = {
        "_pd_meas_2theta_scan": [f"{v:.8g}" for v in x],
        f"_pd_{kind}_intensity_total": [f"{v:.8g}" for v in pattern.intensity],
        "_pd_calc_intensity_total": _numbers(np.interp(x, of, candidate.calculated.intensity)),
    }
    if candidate.background is not None:
        columns["_pd_proc_intensity_bkg_calc"] = _numbers(np.interp(x, of, candidate.background))
    if pattern.sigma is not None:
        columns["_pd_proc_ls_weight"] = _numbers(1 / np.square(np.asarray(pattern.sigma, float)))
    block.init_loop("", list(columns)).set_all_values(list(columns.values()))


def _numbers(values: Any) -> list[str]:
    return [f"{v:.6g}" if np.isfinite(v) else "?" for v in np.asarray(values, float)]


def _quoted(value: str) -> str:
    """A CIF value: quoted where blanks, quotes or a first letter ask for it; ASCII as CIF 1.1."""
    from gemmi import cif

    plain = value.encode("ascii", "backslashreplace").decode().replace("\n", " ")
    lines = [plain[i : i + 1900] for i in range(0, len(plain), 1900)]  # CIF 1.1: 2048 in a line
    return str(cif.quote("\n".join(lines)))
