import json
import subprocess
import sys

import numpy as np
import pytest

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.evaluation.calibration import reliability_curve
from xtalnet_jax.evaluation.generation import Attempt, match_at_k
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.viz import cases, curves, patterns, retrieval, structures

X = np.linspace(10, 80, 701)
PEAKS = np.array([20.0, 33.0, 47.0])


def pattern(shift=0.0, wavelength=1.54184):
    y = sum(100 / (1 + ((X - p - shift) / 0.2) ** 2) for p in PEAKS)
    return Pattern(X, y, wavelength)


PEROVSKITE = Crystal(
    np.array([20, 22, 8, 8, 8]),
    np.array([[0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]),
    np.eye(3) * 3.9,
)


def is_drawn(figure, tmp_path):
    path = tmp_path / "figure.png"
    figure.savefig(path)
    return path.read_bytes().startswith(b"\x89PNG")


def curve(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


# --- patterns ------------------------------------------------------------------------------------


def test_fit_shows_what_it_is_given(tmp_path):
    observed, calculated = pattern(), pattern(0.05)
    figure = patterns.plot_fit(
        observed, calculated.intensity, reflections={"A": PEAKS, "B": [5.0, 50.0]}, title="R"
    )
    (axes,) = figure.axes
    np.testing.assert_array_equal(curve(axes, "measured").get_ydata(), observed.intensity)
    np.testing.assert_array_equal(curve(axes, "calculated").get_ydata(), calculated.intensity)
    difference = curve(axes, "difference").get_ydata()
    expected = observed.intensity - calculated.intensity
    np.testing.assert_allclose(difference - difference.mean(), expected - expected.mean())
    ticks = {c.get_label(): c for c in axes.collections}
    assert [s[0, 0] for s in ticks["A"].get_segments()] == PEAKS.tolist()
    assert [s[0, 0] for s in ticks["B"].get_segments()] == [50.0]  # 5 degrees was not measured
    # nothing overlaps: curves above 0, then ticks, then the difference
    lowest_tick = min(s[:, 1].min() for c in ticks.values() for s in c.get_segments())
    highest_tick = max(s[:, 1].max() for c in ticks.values() for s in c.get_segments())
    assert highest_tick < 0
    assert difference.max() < lowest_tick
    assert axes.get_ylim()[0] < difference.min()
    assert is_drawn(figure, tmp_path)


def test_a_calculated_pattern_on_another_grid_is_put_on_the_measured_one():
    calculated = pattern()
    coarse = Pattern(X[100:600:2], calculated.intensity[100:600:2], 1.54184)
    (axes,) = patterns.plot_fit(pattern(), coarse).axes
    drawn = curve(axes, "calculated").get_ydata()
    np.testing.assert_allclose(drawn[100:599:2], calculated.intensity[100:600:2])
    assert drawn[:100].max() == 0.0


def test_intensities_of_another_length_are_refused():
    with pytest.raises(ValueError, match="grid"):
        patterns.plot_fit(pattern(), np.zeros(3))


def test_stack_and_axis_label(tmp_path):
    figure = patterns.plot_stack([pattern(), pattern(1.0)], ["one", "two"])
    (axes,) = figure.axes
    upper, lower = (line.get_ydata() for line in axes.lines)
    assert upper.min() >= 1.0 >= lower.max()
    assert "1.54184" in axes.get_xlabel()
    assert is_drawn(figure, tmp_path)
    (axes,) = patterns.plot_stack([pattern(), pattern(wavelength=0.7)]).axes
    assert "lambda" not in axes.get_xlabel()
    with pytest.raises(ValueError, match="labels"):
        patterns.plot_stack([pattern()], ["a", "b"])


def test_a_flat_pattern_can_be_normalised():
    assert patterns.normalised(Pattern(X, np.full_like(X, 3.0), 1.0)).tolist() == [0.0] * len(X)


# --- retrieval -----------------------------------------------------------------------------------


def test_heat_map_holds_the_matrix(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(6, 9))
    figure = retrieval.plot_similarity(matrix, "title")
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), matrix)
    assert is_drawn(figure, tmp_path)
    with pytest.raises(ValueError, match="shape"):
        retrieval.plot_similarity(np.ones(3))


def test_panel_names_rank_score_and_the_truth(tmp_path):
    hits = [
        retrieval.Hit("NaCl", pattern(2.0), 0.91, False),
        retrieval.Hit("KCl", pattern(), 0.5, True),
    ]
    figure = retrieval.plot_retrieval(pattern(), hits)
    query, first, second = (axes.texts[0].get_text() for axes in figure.axes)
    assert query == "query"
    assert first.startswith("1.  NaCl")
    assert "0.910" in first
    assert "true" not in first
    assert second.startswith("2.  KCl")
    assert "true" in second
    assert is_drawn(figure, tmp_path)
    with pytest.raises(ValueError, match="hits"):
        retrieval.plot_retrieval(pattern(), [])


def test_panel_shows_crystals_where_it_has_them(tmp_path):
    hit = retrieval.Hit("KCl", pattern(), 0.5, True, PEROVSKITE)
    figure = retrieval.plot_retrieval(pattern(), [hit], truth=PEROVSKITE)
    assert [len(axes.patches) for axes in figure.axes] == [0, 0, 2 * 21, 2 * 21]
    assert [text.get_text() for text in figure.legends[0].texts] == ["O", "Ca", "Ti"]
    assert "1.54184" in figure.axes[1].get_xlabel()
    assert is_drawn(figure, tmp_path)


def test_cases_stand_side_by_side(tmp_path):
    rows = [
        cases.Case(name, PEROVSKITE, PEROVSKITE, 0.1234, pattern(), pattern(0.1))
        for name in ("first", "second")
    ]
    figure = cases.plot_cases(rows, "title")
    truth, candidate, profile = figure.axes[:3]
    assert len(truth.patches) == len(candidate.patches) == 2 * 21
    assert "first" in profile.get_title(loc="right")
    assert "0.1234" in profile.get_title(loc="right")
    np.testing.assert_allclose(profile.lines[0].get_ydata(), patterns.normalised(pattern(0.1)))
    assert is_drawn(figure, tmp_path)
    with pytest.raises(ValueError, match="no cases"):
        cases.plot_cases([])


# --- curves --------------------------------------------------------------------------------------


def write_metrics(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def test_metrics_file_with_gaps_a_restart_and_a_torn_end(tmp_path):
    rows = [
        {"step": 0, "loss": 3.0, "note": "text", "flag": True},
        {"step": 1, "loss": 9.0},
        {"step": 1, "loss": 2.0, "val": 1.0},
        {"step": 2, "loss": 1.0},
    ]
    metrics = curves.load_metrics(write_metrics(tmp_path / "m.jsonl", rows, '{"step": 3, "lo'))
    assert set(metrics) == {"loss", "val"}
    assert [x.tolist() for x in metrics["loss"]] == [[0, 1, 2], [3.0, 2.0, 1.0]]
    assert [x.tolist() for x in metrics["val"]] == [[1], [1.0]]
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"loss": 1}\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        curves.load_metrics(broken)


def test_metric_panels(tmp_path):
    rows = [{"step": i, "loss": 1.0 / (i + 1), "rate": 1e-3} for i in range(60)]
    path = write_metrics(tmp_path / "m.jsonl", [*rows, {"step": 60, "val": 0.5}])
    figure = curves.plot_metrics({"a": path, "b": path}, smoothing=0.9)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "rate", "val"]
    assert len(figure.axes[0].lines) == 4  # raw and smoothed of two runs
    assert len(figure.axes[2].lines) == 2  # one point is not smoothed
    assert is_drawn(figure, tmp_path)
    with pytest.raises(ValueError, match="nope"):
        curves.plot_metrics(path, ["nope"])
    with pytest.raises(ValueError, match="smoothing"):
        curves.plot_metrics(path, smoothing=1.0)


def test_smoothing_keeps_constants_and_skips_what_is_not_finite():
    np.testing.assert_allclose(curves.smooth(np.full(5, 2.0), 0.9), 2.0)
    np.testing.assert_allclose(curves.smooth(np.array([1.0, np.nan, 1.0]), 0.5), 1.0)
    # first two weights 0.5 * 0.5 and 0.5, divided by their sum 0.75
    assert curves.smooth(np.array([0.0, 3.0]), 0.5)[1] == pytest.approx(2.0)


def test_match_rate_and_reliability(tmp_path):
    attempts = [Attempt(i, j, -j, 0.1 if j == 1 else None) for i in "abc" for j in range(3)]
    figure = curves.plot_match_rate({"ranked": match_at_k(attempts, ks=(1, 2, 3))})
    assert curve(figure.axes[0], "ranked").get_ydata().tolist() == [0.0, 100.0, 100.0]
    assert is_drawn(figure, tmp_path)

    reliability = reliability_curve([0.1, 0.9, 0.9, 0.9], [0, 1, 1, 0])
    figure = curves.plot_reliability(reliability, "ECE")
    assert [bar.get_height() for bar in figure.axes[1].patches] == [1, 3]
    assert is_drawn(figure, tmp_path)


def test_breakdown_has_a_bar_and_an_interval_for_each_kind(tmp_path):
    attempts = [Attempt(i, 0, 1.0, 0.1 if i in "ab" else None) for i in "abcd"]
    results = {"1-4": match_at_k(attempts, (1,))[0], "5-8": match_at_k(attempts[:2], (1,))[0]}
    (axes,) = curves.plot_breakdown(results, "atoms").axes
    assert [bar.get_height() for bar in axes.patches] == [50.0, 100.0]
    assert [text.get_text() for text in axes.texts] == ["n = 4", "n = 2"]
    (intervals,) = (c.get_segments() for c in axes.collections)
    for found, segment in zip(results.values(), intervals):
        np.testing.assert_allclose(segment[:, 1], 100 * np.array(found.match_rate[1:]))
    assert is_drawn(axes.figure, tmp_path)
    with pytest.raises(ValueError, match="no kinds"):
        curves.plot_breakdown({})


# --- structures ----------------------------------------------------------------------------------


def test_atoms_on_the_boundary_are_repeated():
    numbers, frac = structures.with_boundary_images(PEROVSKITE)
    # corners 8, edge centres 12 (each O on four edges), body centre 1
    assert {int(z): int((numbers == z).sum()) for z in np.unique(numbers)} == {8: 12, 20: 1, 22: 8}
    assert frac.min() == 0.0
    assert frac.max() == 1.0
    assert len(np.unique(frac.round(6), axis=0)) == len(frac)


def test_bonds_join_titanium_and_oxygen():
    numbers, frac = structures.with_boundary_images(PEROVSKITE)
    pairs = structures.bonded_pairs(numbers, frac @ PEROVSKITE.lattice)
    kinds = [tuple(sorted(numbers[pair].tolist())) for pair in pairs]
    assert kinds.count((8, 22)) == 24  # every edge of the cell is Ti-O-Ti
    assert kinds.count((8, 20)) == 12  # Ca in its cuboctahedron
    assert len(kinds) == 36


@pytest.mark.parametrize("handedness", [1.0, -1.0])
def test_projection_is_a_rotation_with_c_upwards(handedness):
    lattice = np.array([[4.0, 0, 0], [1.0, 5.0 * handedness, 0], [0.5, 0.4, 6.0]])
    projection = structures._projection(lattice, 18.0, -65.0)
    np.testing.assert_allclose(projection @ projection.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(projection) == pytest.approx(handedness)
    right, up, _ = projection @ lattice[2]
    assert right == pytest.approx(0.0, abs=1e-12)
    assert up > 0


def test_crystals_are_drawn(tmp_path):
    figure = structures.plot_crystals([PEROVSKITE] * 3, ["a", "b", "c"], columns=2)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", ""]
    assert len(figure.axes[0].patches) == 2 * 21  # a ball and its shine for each atom
    assert [text.get_text() for text in figure.legends[0].texts] == ["O", "Ca", "Ti"]
    assert is_drawn(figure, tmp_path)
    with pytest.raises(ValueError, match="titles"):
        structures.plot_crystals([PEROVSKITE], ["a", "b"])


def test_import_is_light_and_pyplot_is_never_used():
    code = (
        "import sys; from xtalnet_jax.viz import cases, curves, patterns, retrieval, structures;"
        "from xtalnet_jax.viz import style;"
        "assert not {'matplotlib', 'pymatgen'} & set(sys.modules); style.new_figure();"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
