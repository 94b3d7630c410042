"""Curves: training metrics of a run, match rate against k and by kind, reliability."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xtalnet_jax.evaluation.calibration import ReliabilityCurve
from xtalnet_jax.evaluation.generation import MatchAtK
from xtalnet_jax.viz.style import FAINT, INK, SERIES, new_figure, tidy

MIN_SMOOTHED = 50
"""Shorter curves (validation) are not smoothed: the lag would be larger than the noise."""


def load_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read a ``metrics.jsonl``: name -> (steps [n], values [n]) of every number that was logged.

    A torn last line (a run that is still writing) is passed over; a step that was logged twice
    (a run that was resumed) keeps its last value.

    Raises:
        ValueError: another line is not a JSON object with a ``step``.
    """
    path = Path(path)
    series: dict[str, dict[int, float]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{path}, line {number} has no step ({error}); expected one JSON object per line"
            ) from None
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and is_number:
                series.setdefault(name, {})[step] = float(value)
    return {
        name: (np.array(sorted(points)), np.array([points[s] for s in sorted(points)]))
        for name, points in series.items()
    }


def plot_metrics(
    runs: str | Path | Mapping[str, str | Path],
    names: Sequence[str] | None = None,
    smoothing: float = 0.0,
    log_scale: bool = False,
) -> Any:
    """One panel per metric, one curve per run.

    Args:
        runs: a ``metrics.jsonl``, or label -> such files.
        names: metrics to draw; None draws all that any run has.
        smoothing: weight of the past in an exponential mean, 0 (none) to below 1; the raw curve
            stays visible behind. Curves of fewer than 50 points are left as they are.
        log_scale: logarithmic values.

    Raises:
        ValueError: nothing to draw, or a smoothing outside 0..1.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing}; expected 0 to below 1")
    files = runs if isinstance(runs, Mapping) else {"": runs}
    data = {label: load_metrics(path) for label, path in files.items()}
    found = list(dict.fromkeys(name for metrics in data.values() for name in metrics))
    names = found if names is None else list(names)
    if not names or not set(names) <= set(found):
        raise ValueError(f"metrics {list(names)} asked for; the files have {found}")
    num_columns = min(3, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    width = 6.4 if num_columns == 1 else 3.6 * num_columns
    figure = new_figure(width, (3.6 if num_rows == 1 else 2.7) * num_rows)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, names):
        tidy(axes, grid=True)
        for i, (label, metrics) in enumerate(data.items()):
            if name not in metrics:
                continue
            steps, values = metrics[name]
            colour = SERIES[i % len(SERIES)]
            marker = "o" if len(steps) < 3 else None
            curve = values
            if smoothing and len(values) >= MIN_SMOOTHED:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                curve = smooth(values, smoothing)
            axes.plot(steps, curve, color=colour, linewidth=1.4, label=label, marker=marker)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        if log_scale:
            axes.set_yscale("log")
    if len(data) > 1:
        grid.flat[0].legend(frameon=False, fontsize=8)
    return figure


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential mean, corrected for its start as in Adam, values that are not finite left out."""
    mean, total, result = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            total = weight * total + (1 - weight)
        result.append(mean / total if total else math.nan)
    return np.array(result)


def plot_match_rate(results: Mapping[str, Sequence[MatchAtK]], title: str | None = None) -> Any:
    """Match rate of the best of the top k against k, with intervals; one curve per label."""
    figure = new_figure(5.6, 4.0)
    axes = tidy(figure.add_subplot(), grid=True)
    for i, (label, row) in enumerate(results.items()):
        ks = [r.k for r in row]
        value, low, high = (100 * np.array(x) for x in zip(*(r.match_rate for r in row)))
        colour = SERIES[i % len(SERIES)]
        axes.fill_between(ks, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(ks, value, "o-", color=colour, markersize=4, linewidth=1.4, label=label)
    ticks = sorted({r.k for row in results.values() for r in row})
    axes.set_xticks(ticks)
    axes.set_ylim(0, 103)
    axes.set_xlabel("k (best of the top k candidates)")
    axes.set_ylabel("match rate (%)")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def plot_breakdown(
    results: Mapping[Any, MatchAtK], xlabel: str = "", title: str | None = None
) -> Any:
    """Match rate for each kind of item (`generation.breakdown`): bars, intervals, item counts.

    Raises:
        ValueError: nothing to draw.
    """
    if not results:
        raise ValueError("no kinds of items to draw; expected at least one")
    figure = new_figure(max(4.2, 1.6 + 0.75 * len(results)), 3.8)
    axes = tidy(figure.add_subplot(), grid=True)
    axes.grid(False, axis="x")
    place = np.arange(len(results))
    value, low, high = (100 * np.array(x) for x in zip(*(r.match_rate for r in results.values())))
    axes.bar(place, value, width=0.62, color=SERIES[0], alpha=0.75)
    axes.errorbar(place, value, np.stack([value - low, high - value]), fmt="none", ecolor=INK,
                  elinewidth=1.0, capsize=3)  # fmt: skip
    for x, found in zip(place, results.values()):
        axes.text(x, 101.5, f"n = {found.num_items}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(place, [str(label) for label in results])
    axes.set_xlim(-0.6, len(results) - 0.4)
    axes.set_ylim(0, 109)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel(xlabel)
    axes.set_ylabel("match rate (%), 95 % interval")
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def plot_reliability(curve: ReliabilityCurve, title: str | None = None) -> Any:
    """Reliability diagram: how often answers of a confidence were right; below, how many."""
    figure = new_figure(4.6, 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    tidy(upper, grid=True)
    tidy(lower)
    upper.plot([0, 1], [0, 1], "--", color=FAINT, linewidth=1.0, label="honest")
    spread = np.stack([curve.accuracy - curve.low, curve.high - curve.accuracy])
    upper.errorbar(curve.confidence, curve.accuracy, spread, fmt="o-", color=SERIES[0],
                   markersize=4, linewidth=1.2, capsize=2, label="observed, 95 %")  # fmt: skip
    upper.set_ylim(-0.02, 1.02)
    upper.set_xlim(-0.02, 1.02)
    upper.set_ylabel("fraction right")
    upper.legend(frameon=False, fontsize=8, loc="lower right")
    lower.bar(curve.confidence, curve.n_items, width=0.04, color=SERIES[0], alpha=0.6)
    lower.set_ylabel("answers", color=INK)
    lower.set_xlabel("confidence")
    if title:
        upper.set_title(title, fontsize=10, loc="left")
    return figure
