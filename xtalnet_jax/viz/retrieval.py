"""Retrieval: similarity heat map and the panel of a query with its top hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.viz.patterns import angle_label, normalised
from xtalnet_jax.viz.structures import add_legend, draw_crystal
from xtalnet_jax.viz.style import FAINT, INK, SERIES, new_figure, tidy


class Hit(NamedTuple):
    """One crystal that a query found."""

    name: str
    pattern: Pattern
    score: float
    is_truth: bool
    crystal: Crystal | None = None


def plot_similarity(similarity: Any, title: str | None = None) -> Any:
    """Heat map of similarities [n_query, n_candidate]; a good model shows a bright diagonal.

    Raises:
        ValueError: not a matrix.
    """
    matrix = np.asarray(similarity)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"similarity has shape {matrix.shape}; expected [n_query, n_candidate]")
    figure = new_figure(5.6, 4.8)
    axes = figure.add_subplot()
    image = axes.imshow(matrix, cmap="viridis", interpolation="nearest", aspect="equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("crystal")
    axes.set_ylabel("pattern")
    axes.tick_params(length=0, labelsize=9)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label("similarity")
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def plot_retrieval(
    query: Pattern, hits: Sequence[Hit], name: str = "query", truth: Crystal | None = None
) -> Any:
    """The query on top, then each hit in order of rank with the query in grey behind it.

    If hits have crystals, these stand at the right, and ``truth`` beside the query.

    Raises:
        ValueError: no hits.
    """
    if not hits:
        raise ValueError("no hits to draw; expected at least one")
    crystals = [truth, *(hit.crystal for hit in hits)]
    drawn = [crystal for crystal in crystals if crystal is not None]
    figure = new_figure(10.0 if drawn else 8.0, 0.6 + (1.5 if drawn else 1.0) * len(crystals))
    grid = figure.add_gridspec(
        len(crystals), 2 if drawn else 1, width_ratios=[5, 1][: 1 + bool(drawn)]
    )
    rows = [figure.add_subplot(grid[0, 0])]
    rows += [
        figure.add_subplot(grid[i, 0], sharex=rows[0], sharey=rows[0])
        for i in range(1, len(crystals))
    ]
    for i, crystal in enumerate(crystals):
        if crystal is not None:
            draw_crystal(figure.add_subplot(grid[i, 1]), crystal)
    if drawn:
        add_legend(figure, drawn)
    x, y = query.two_theta, normalised(query)
    rows[0].plot(x, y, color=INK, linewidth=0.9)
    _caption(rows[0], name, INK)
    for rank, (axes, hit) in enumerate(zip(rows[1:], hits), 1):
        colour = SERIES[2] if hit.is_truth else SERIES[0]
        axes.fill_between(x, y, color="#d9d9d9", linewidth=0)
        axes.plot(hit.pattern.two_theta, normalised(hit.pattern), color=colour, linewidth=0.9)
        mark = "   ✓ true structure" if hit.is_truth else ""
        _caption(axes, f"{rank}.  {hit.name}   similarity {hit.score:.3f}{mark}", colour)
    for axes in rows:
        tidy(axes).set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        axes.tick_params(labelbottom=axes is rows[-1])
    rows[-1].set_xlim(x[0], x[-1])
    rows[-1].set_ylim(-0.03, 1.12)
    rows[-1].set_xlabel(angle_label(query, *(hit.pattern for hit in hits)))
    return figure


def _caption(axes: Any, text: str, colour: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axes.text(0.995, 0.93, text, transform=axes.transAxes, ha="right", va="top", fontsize=9,
              color=colour, bbox=box)  # fmt: skip
