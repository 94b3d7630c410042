import math

import numpy as np
import pytest

from xtalnet_jax.evaluation.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        # Newcombe, Stat. Med. 17, 857 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_of_newcombe(successes, total, low, high):
    estimate = wilson(successes, total)
    assert estimate.value == pytest.approx(successes / total)
    assert estimate.low == pytest.approx(low, abs=6e-5)
    assert estimate.high == pytest.approx(high, abs=6e-5)


def test_wilson_is_symmetric_and_exact_at_the_ends():
    a, b = wilson(3, 17), wilson(14, 17)
    assert a.low == pytest.approx(1 - b.high)
    assert a.high == pytest.approx(1 - b.low)
    assert wilson(0, 5).low == 0.0
    assert wilson(5, 5).high == 1.0


@pytest.mark.parametrize(("successes", "total"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_nonsense(successes, total):
    with pytest.raises(ValueError, match="expected"):
        wilson(successes, total)


def test_bootstrap_of_a_mean_agrees_with_its_standard_error():
    x = np.random.default_rng(1).normal(3.0, 2.0, 400)
    estimate = bootstrap(lambda i: float(x[i].mean()), len(x), num_resamples=2000)
    assert estimate.value == pytest.approx(x.mean())
    half = 1.96 * x.std() / math.sqrt(len(x))
    assert estimate.high - estimate.value == pytest.approx(half, rel=0.12)
    assert estimate.value - estimate.low == pytest.approx(half, rel=0.12)
    assert estimate == bootstrap(lambda i: float(x[i].mean()), len(x), num_resamples=2000)


def test_bootstrap_leaves_out_undefined_resamples():
    x = np.array([1.0, np.nan, np.nan])

    def statistic(index):
        return float(np.nanmean(x[index])) if np.isfinite(x[index]).any() else math.nan

    assert bootstrap(statistic, 3) == (1.0, 1.0, 1.0)
