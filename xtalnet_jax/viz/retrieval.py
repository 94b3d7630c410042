"""Retrieval: similarity heat map and the panel of a query with its top hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.viz.patterns import normalised
from xtalnet_jax.viz.style import FAINT, INK, SERIES, new_figure, tidy


class Hit(NamedTuple):
    """One crystal that a query found."""

    name: str
    pattern: Pattern
    score: float
    is_truth: bool


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


def plot_retrieval(query: Pattern, hits: Sequence[Hit], name: str = "query") -> Any:
    """The query on top, then each hit in order of rank with the query in grey behind it.

    Raises:
        ValueError: no hits.
    """
    if not hits:
        raise ValueError("no hits to draw; expected at least one")
    figure = new_figure(8.0, 0.6 + 1.0 * (len(hits) + 1))
    rows = figure.subplots(len(hits) + 1, 1, sharex=True, sharey=True)
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
    rows[-1].set_xlim(x[0], x[-1])
    rows[-1].set_ylim(-0.03, 1.12)
    rows[-1].set_xlabel("$2\\theta$ (degrees)")
    return figure


def _caption(axes: Any, text: str, colour: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axes.text(0.995, 0.93, text, transform=axes.transAxes, ha="right", va="top", fontsize=9,
              color=colour, bbox=box)  # fmt: skip
