"""One look for all figures, without touching matplotlib's global state."""

from __future__ import annotations

from typing import Any

INK = "#222222"
FAINT = "#9a9a9a"
GRID = "#e4e4e4"
SERIES = ("#0b6fa4", "#d1495b", "#3a7d44", "#e09f3e", "#6d597a", "#30a5a0", "#8c564b")
"""Colours of successive curves, distinct also for colour-blind readers."""


def new_figure(width: float = 6.4, height: float = 4.0) -> Any:
    """A white figure (inches) with a layout that makes room for its labels.

    It is made without pyplot: nothing is registered globally, no window can open, and a loop over
    a thousand figures leaks none.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")


def tidy(axes: Any, grid: bool = False) -> Any:
    """Take away the frame that carries no information; return ``axes``."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    if grid:
        axes.grid(True, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    return axes
