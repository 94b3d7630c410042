"""Powder patterns: measured against calculated, and several under one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.viz.style import FAINT, INK, SERIES, new_figure, tidy


def plot_fit(
    observed: Pattern,
    calculated: Any,
    background: Any = None,
    reflections: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> Any:
    """Rietveld plot: measured points, calculated curve, reflection ticks, difference.

    Args:
        observed: measured pattern.
        calculated: a `Pattern` (put on the measured grid, 0 outside of its own) or intensities
            [n_bin] on the measured grid.
        background: [n_bin] on the measured grid.
        reflections: name of a phase -> 2-theta positions, degrees; one row of ticks for each.
        title: e.g. formula and R_wp.

    Returns:
        The figure.

    Raises:
        ValueError: intensities do not fit the measured grid.
    """
    x = np.asarray(observed.two_theta)
    y = np.asarray(observed.intensity)
    model = _on_grid(calculated, x)
    reflections = reflections or {}
    height = max(float(np.nanmax(y)), float(np.nanmax(model))) or 1.0
    row = 0.05 * height
    difference = y - model
    # Below the curves, one after the other: rows of ticks, then the difference.
    ticks_end = -0.03 * height - row * len(reflections)
    zero = ticks_end - 0.03 * height - max(float(np.nanmax(difference)), 0.0)

    figure = new_figure(8.0, 4.6)
    axes = tidy(figure.add_subplot())
    axes.plot(x, y, ".", color=INK, markersize=2.5, label="measured", rasterized=len(x) > 20000)
    axes.plot(x, model, color=SERIES[1], linewidth=1.1, label="calculated")
    if background is not None:
        axes.plot(x, _on_grid(background, x), color=SERIES[3], linewidth=1.0, label="background")
    for i, (name, positions) in enumerate(reflections.items()):
        low = -0.03 * height - row * (i + 1)
        positions = np.asarray(positions)
        inside = positions[(positions >= x[0]) & (positions <= x[-1])]
        colour = SERIES[(2, 4, 5, 6)[i % 4]]
        axes.vlines(inside, low, low + 0.75 * row, color=colour, linewidth=0.9, label=name)
    axes.axhline(zero, color=FAINT, linewidth=0.5)
    axes.plot(x, difference + zero, color=SERIES[0], linewidth=0.8, label="difference")
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(zero + min(float(np.nanmin(difference)), 0.0) - 0.03 * height, 1.05 * height)
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1.05 * height])
    axes.set_xlabel(angle_label(observed))
    axes.set_ylabel("intensity")
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=6)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def plot_stack(
    patterns: Sequence[Pattern], labels: Sequence[str] | None = None, title: str | None = None
) -> Any:
    """Several patterns under one another, the first on top, each scaled to its strongest point.

    Raises:
        ValueError: no patterns, or as many labels as patterns are not given.
    """
    labels = [""] * len(patterns) if labels is None else list(labels)
    if not patterns or len(labels) != len(patterns):
        raise ValueError(f"{len(patterns)} patterns, {len(labels)} labels; expected equal and > 0")
    figure = new_figure(8.0, 1.2 + 0.9 * len(patterns))
    axes = tidy(figure.add_subplot())
    first = min(float(p.two_theta[0]) for p in patterns)
    last = max(float(p.two_theta[-1]) for p in patterns)
    for i, (pattern, label) in enumerate(zip(patterns, labels)):
        base = 1.15 * (len(patterns) - 1 - i)
        colour = SERIES[i % len(SERIES)]
        axes.plot(pattern.two_theta, normalised(pattern) + base, color=colour, linewidth=0.9)
        axes.text(last, base + 0.95, label, ha="right", va="top", fontsize=9, color=colour)
    axes.set_xlim(first, last)
    axes.set_ylim(-0.05, 1.15 * len(patterns))
    axes.set_yticks([])
    axes.set_xlabel(angle_label(*patterns))
    axes.set_ylabel("intensity (scaled)")
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def normalised(pattern: Pattern) -> np.ndarray:
    """Intensities [n_bin] scaled to 0..1."""
    y = np.asarray(pattern.intensity, np.float64)
    low, span = np.nanmin(y), np.nanmax(y) - np.nanmin(y)
    return (y - low) / (span if span > 0 else 1.0)


def _on_grid(values: Any, x: np.ndarray) -> np.ndarray:
    if isinstance(values, Pattern):
        return np.interp(x, values.two_theta, values.intensity, left=0.0, right=0.0)
    values = np.asarray(values)
    if values.shape != x.shape:
        raise ValueError(
            f"intensities have shape {values.shape}, the measured grid {x.shape}; expected the "
            "same, or give a Pattern, which is put on the grid"
        )
    return values


def angle_label(*patterns: Pattern) -> str:
    """Label of the axis; it tells the wavelength if all patterns have the same."""
    wavelengths = {round(float(p.wavelength), 5) for p in patterns}
    suffix = f", $\\lambda$ = {wavelengths.pop():g} Å" if len(wavelengths) == 1 else ""
    return f"$2\\theta$ (degrees{suffix})"
