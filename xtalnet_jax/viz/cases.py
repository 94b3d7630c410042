"""Cases: true structures beside what was generated for them, with both patterns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.viz.patterns import angle_label, normalised
from xtalnet_jax.viz.structures import add_legend, draw_crystal
from xtalnet_jax.viz.style import FAINT, INK, SERIES, new_figure, tidy


class Case(NamedTuple):
    """One answer and what it should have been."""

    name: str
    truth: Crystal
    candidate: Crystal
    rmse: float  # in units of (V/N)^(1/3)
    observed: Pattern
    calculated: Pattern  # of the candidate


def plot_cases(cases: Sequence[Case], title: str | None = None) -> Any:
    """One row for each case: truth, candidate, and the pattern of the candidate on the given one.

    Raises:
        ValueError: no cases.
    """
    if not cases:
        raise ValueError("no cases to draw; expected at least one")
    figure = new_figure(10.0, 2.1 * len(cases) + 0.8)
    grid = figure.subplots(len(cases), 3, squeeze=False, width_ratios=(1, 1, 2.6))
    for (left, middle, right), case in zip(grid, cases):
        draw_crystal(left, case.truth)
        draw_crystal(middle, case.candidate)
        tidy(right).set_yticks([])
        right.spines["left"].set_visible(False)
        right.spines["bottom"].set_color(FAINT)
        x = case.observed.two_theta
        right.fill_between(x, normalised(case.observed), color="#d0d0d0", linewidth=0)
        calculated = normalised(case.calculated)
        right.plot(case.calculated.two_theta, calculated, color=SERIES[1], linewidth=0.8)
        right.set_xlim(x[0], x[-1])
        right.set_ylim(-0.02, 1.05)
        right.set_title(f"{case.name}   RMSE {case.rmse:.4f}", fontsize=9, loc="right", color=INK)
    for axes, text in zip(grid[0, :2], ("truth", "candidate")):
        axes.set_title(text, fontsize=10)
    grid[0, 2].set_title("given (grey), candidate (red)", fontsize=9, loc="left", color=INK)
    grid[-1, 2].set_xlabel(angle_label(*(case.observed for case in cases)))
    add_legend(figure, [case.truth for case in cases])
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
