"""The ranker finds the coefficients that made the data, and survives its file."""

import json

import numpy as np
import pytest
from scipy.special import expit

from xtalnet_jax.solve import ranking

NUM = len(ranking.FEATURES)
TRUE = np.array([-2.0, -0.5, -0.8, 1.0, 0.0, 3.0, -0.7, 0.2, -1.0, 0.6])


LEAD = ranking.FEATURES.index("lead")
CENTRE = np.where(np.arange(NUM) == LEAD, -20.0, np.arange(NUM))
"""Nobody leads."""


def data(n: int = 20000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, NUM)) * np.linspace(0.5, 3, NUM) + CENTRE
    chance = expit((features - CENTRE) @ TRUE - 0.4)
    return features, rng.random(n) < chance


def test_known_coefficients_are_found_within_their_errors():
    features, matched = data()
    fitted = ranking.fit_ranker(features, matched)
    found = fitted.coefficients / fitted.scale
    chance = fitted.confidence(features)
    design = np.c_[np.ones(len(features)), features]
    information = (design * (chance * (1 - chance))[:, None]).T @ design
    error = np.sqrt(np.linalg.inv(information).diagonal())[1:]
    assert (np.abs(found - TRUE) < 4 * error).all()
    assert error.max() < 0.2
    assert chance.mean() == pytest.approx(matched.mean(), abs=1e-4)  # the intercept is not shrunk


def test_a_leader_counts_like_several_others():
    """The same coefficients, in units of the inputs, as from a list with each leader five times."""
    features, matched = data(400)
    features[:80, LEAD] += 30
    leads = features[:, LEAD] >= 0
    assert leads.sum() == 80
    listed = np.repeat(np.arange(400), np.where(leads, int(ranking.LEADER_WEIGHT), 1))
    nobody = features[listed] - 100.0 * (np.arange(NUM) == LEAD)  # moves the intercept only
    few = ranking.fit_ranker(features, matched, penalty=1e-6)
    many = ranking.fit_ranker(nobody, matched[listed], penalty=1e-6)
    found, expected = few.coefficients / few.scale, many.coefficients / many.scale
    np.testing.assert_allclose(found, expected, atol=2e-3)
    plain = ranking.fit_ranker(features - 100.0 * (np.arange(NUM) == LEAD), matched)
    assert np.abs(plain.coefficients / plain.scale - found).max() > 0.02


def test_inputs_that_are_left_out_do_not_count():
    features, matched = data(500)
    names = ranking.INPUTS["refined"]
    fitted = ranking.fit_ranker(features, matched, inputs=names)
    used = np.array([name in names for name in ranking.FEATURES])
    assert not fitted.coefficients[~used].any()
    assert np.abs(fitted.coefficients[used]).max() > 0.5
    changed = np.where(used, features, 7.0)
    np.testing.assert_allclose(fitted.confidence(changed), fitted.confidence(features))


def test_confidence_is_calibrated_in_every_fifth():
    features, matched = data()
    half = len(features) // 2
    chance = ranking.fit_ranker(features[:half], matched[:half]).confidence(features[half:])
    for rows in np.array_split(np.argsort(chance), 5):
        assert chance[rows].mean() == pytest.approx(matched[half:][rows].mean(), abs=0.05)


def test_constant_feature_and_separable_data_stay_finite():
    features = np.zeros((40, NUM))
    features[:, 0] = np.arange(40)
    fitted = ranking.fit_ranker(features, features[:, 0] < 20)
    assert np.isfinite(fitted.coefficients).all()
    assert fitted.confidence(features)[0] > 0.9 > 0.1 > fitted.confidence(features)[-1]


def test_a_worse_fit_never_counts_in_favour():
    features, _ = data(500)
    fitted = ranking.fit_ranker(features, features[:, 1] > 1)  # larger R_wp, more matches
    assert fitted.coefficients[ranking.FEATURES.index("log_rwp_net")] == 0


@pytest.mark.parametrize("matched", [np.zeros(5, bool), np.ones(5, bool)])
def test_nothing_to_learn_is_said(matched):
    with pytest.raises(ValueError, match="needs matches and misses"):
        ranking.fit_ranker(np.zeros((5, NUM)), matched)


def test_round_trip_through_the_file(tmp_path):
    features, matched = data(500)
    fitted = ranking.fit_ranker(features, matched)
    ranking.save_rankers(tmp_path / "ranker.json", {"refined": fitted})
    (read,) = ranking.load_rankers(tmp_path / "ranker.json").values()
    np.testing.assert_array_equal(read.confidence(features), fitted.confidence(features))


def test_file_of_another_version_is_refused(tmp_path):
    config = ranking.fit_ranker(*data(500)).to_config()
    config["features"] = config["features"][::-1]
    (tmp_path / "ranker.json").write_text(json.dumps({"refined": config}))
    with pytest.raises(ValueError, match="fit it again"):
        ranking.load_rankers(tmp_path / "ranker.json")


def test_features_in_order_and_bounded():
    row = ranking.feature_matrix(
        np.array([1.0]), np.array([0.0]), np.array([0.0]), np.array([0.5]), np.array([0.25]),
        np.array([9.0]), np.array([10]), np.array([3]), np.array([7.0]), np.array([0]),
    )  # fmt: skip
    np.testing.assert_allclose(row, [[-4, -3, 0, 0.5, 0.25, 1.0, np.log(10), np.log(4), 2.0, 2.0]])
    assert ranking.feature_matrix(*[np.zeros(0)] * 10).shape == (0, NUM)


def test_lead_is_over_the_best_other_structure():
    cosine = 1 - np.array([0.001, 0.001, 0.1, 0.01])
    group = np.array([0, 0, 1, 2])  # the second is the first structure again
    rows = ranking.feature_matrix(cosine, *[np.ones(4)] * 8, group)
    np.testing.assert_allclose(rows[:, -1], [1.0, 1.0, -2.0, -1.0], atol=1e-9)


@pytest.mark.parametrize(
    ("own", "cell", "excess"),
    [
        (0.3, 0.3, 0.0),
        (0.45, 0.2, np.log10(2.0)),  # 0.5 to 0.25: 5 % are added to both
        (0.01, 0.0, np.log10(1.2)),
        (0.2, 0.3, 0.0),  # a better fit than that of the cell is an accident
        (2.95, 0.05, 1.0),  # 30 times
    ],
)
def test_excess_is_how_much_worse_than_its_cell_a_structure_fits(own, cell, excess):
    rest = [np.ones(1)] * 6
    row = ranking.feature_matrix(
        np.ones(1), np.array([own]), np.array([cell]), *rest, np.zeros(1, int)
    )
    assert row.shape == (1, NUM)
    assert row[0, ranking.FEATURES.index("excess")] == pytest.approx(excess, abs=1e-12)
