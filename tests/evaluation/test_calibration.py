import numpy as np
import pytest

from xtalnet_jax.evaluation.calibration import (
    brier_score,
    expected_calibration_error,
    reliability_curve,
)
from xtalnet_jax.evaluation.intervals import wilson


def test_hand_made_curve():
    confidence = [0.05, 0.15, 0.12, 0.95, 1.0]
    correct = [0, 1, 0, 1, 1]
    curve = reliability_curve(confidence, correct, num_bins=10)
    assert curve.n_items.tolist() == [1, 2, 2]
    assert curve.confidence.tolist() == pytest.approx([0.05, 0.135, 0.975])
    assert curve.accuracy.tolist() == [0.0, 0.5, 1.0]
    assert (curve.low[1], curve.high[1]) == wilson(1, 2)[1:]
    expected = (1 * 0.05 + 2 * (0.5 - 0.135) + 2 * 0.025) / 5
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected)


def test_honest_confidence_is_calibrated_and_boasting_is_not():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 20000)
    correct = rng.uniform(0, 1, p.size) < p
    assert expected_calibration_error(p, correct) < 0.02
    boast = np.sqrt(p)
    # E[sqrt(p) - p] = 2/3 - 1/2
    assert expected_calibration_error(boast, correct) == pytest.approx(1 / 6, abs=0.02)
    # Brier of honest confidence: E[p (1 - p)] = 1/6; honesty is optimal.
    assert brier_score(p, correct) == pytest.approx(1 / 6, abs=0.006)
    assert brier_score(boast, correct) > brier_score(p, correct)


def test_quantile_bins_hold_equal_counts_and_keep_ties_together():
    p = np.linspace(0, 1, 100) ** 3
    curve = reliability_curve(p, p > 0.5, num_bins=4, binning="quantile")
    assert curve.n_items.tolist() == [25, 25, 25, 25]
    assert reliability_curve([0.5] * 9, [1] * 9, 4, "quantile").n_items.tolist() == [9]


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([0.5], [1, 0], "shape"),
        ([], [], "expected"),
        ([1.5], [1], "0 to 1"),
        ([np.nan], [1], "0 to 1"),
        ([0.5], [2], "booleans"),
    ],
)
def test_bad_input_is_named(confidence, correct, message):
    with pytest.raises(ValueError, match=message):
        brier_score(confidence, correct)
