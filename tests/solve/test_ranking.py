"""The ranker finds the coefficients that made the data, and survives its file."""

import json

import numpy as np
import pytest

from xtalnet_jax.solve import ranking
from xtalnet_jax.solve.ranking import FEATURES, Question

NUM = len(FEATURES)
TRUE = np.array([-2.0, -0.5, -0.7, -0.8, 1.0, 0.0, -3.0, -1.5, -0.7, 0.2, -1.0])
INTERCEPT = -0.4
CENTRE = np.arange(NUM)


def data(n: int = 4000, at: int = 4) -> list[Question]:
    """Patterns of 0 to ``at`` structures; which is right, if any, is drawn from the model."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(n):
        features = rng.normal(size=(rng.integers(at + 1), NUM)) * np.linspace(0.5, 3, NUM) + CENTRE
        utility = np.append((features - CENTRE) @ TRUE + INTERCEPT, 0.0)
        chance = np.exp(utility) / np.exp(utility).sum()
        out.append(
            Question(features, np.arange(len(features)) == rng.choice(len(chance), p=chance))
        )
    return out


def test_known_coefficients_are_found_within_their_errors():
    questions = data()
    fitted = ranking.fit_ranker(questions)
    found = fitted.coefficients / fitted.scale
    information = np.zeros((NUM + 1, NUM + 1))
    for features, *_ in questions:
        design = np.c_[np.ones(len(features)), features]
        chance = fitted.confidence(features)
        information += (design.T * chance) @ design - np.outer(chance @ design, chance @ design)
    error = np.sqrt(np.linalg.inv(information).diagonal())[1:]
    assert (np.abs(found - TRUE) < 4 * error).all()
    assert error.max() < 0.2
    said = sum(fitted.confidence(q.features).sum() for q in questions)
    assert said == pytest.approx(sum(q.matched.sum() for q in questions), abs=1.0)


def test_structures_of_a_pattern_exclude_each_other():
    ranker = ranking.Ranker(np.zeros(NUM), np.ones(NUM), np.eye(NUM)[0], 0.0)
    utility = np.array([3.0, 3.0, -1.0])
    chance = ranker.confidence(utility[:, None] * np.eye(NUM)[0])
    odds = np.exp(utility)
    np.testing.assert_allclose(chance, odds / (1.0 + odds.sum()))
    assert ranker.confidence(np.zeros((0, NUM))).shape == (0,)
    assert ranker.confidence(1e4 * np.eye(NUM)[:1]) == pytest.approx(1.0)


def test_right_is_any_structure_that_matched():
    """Two that matched share what one alone would have: their order teaches nothing."""
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(3, NUM)) for _ in range(50)]
    one = [Question(r, np.array([True, False, False])) for r in rows]
    both = [Question(r, np.array([True, True, False])) for r in rows]
    ways = [ranking.fit_ranker(q, 1e-3, inputs=()) for q in (one, both)]
    chances = [way.confidence(rows[0]) for way in ways]
    np.testing.assert_allclose(chances[0], 1 / 3, atol=1e-2)
    np.testing.assert_allclose(chances[1], 1 / 3, atol=1e-2)
    again = [Question(r[[1, 0, 2]], m) for r, m, _ in both]
    first, second = (ranking.fit_ranker(q) for q in (both, again))
    np.testing.assert_allclose(first.coefficients, second.coefficients, atol=1e-6)


def test_inputs_that_are_left_out_do_not_count():
    questions = data(500)
    names = ranking.INPUTS["refined"]
    fitted = ranking.fit_ranker(questions, inputs=names)
    used = np.array([name in names for name in FEATURES])
    assert not fitted.coefficients[~used].any()
    assert np.abs(fitted.coefficients[used]).max() > 0.5
    features = next(q.features for q in questions if len(q.features) > 2)
    changed = np.where(used, features, 7.0)
    np.testing.assert_allclose(fitted.confidence(changed), fitted.confidence(features))


def test_confidence_is_calibrated_in_every_fifth():
    questions = data()
    fitted = ranking.fit_ranker(questions[:2000])
    chance = np.concatenate([fitted.confidence(q.features) for q in questions[2000:]])
    matched = np.concatenate([q.matched for q in questions[2000:]])
    for rows in np.array_split(np.argsort(chance), 5):
        assert chance[rows].mean() == pytest.approx(matched[rows].mean(), abs=0.05)


def test_constant_feature_and_separable_data_stay_finite():
    features = np.zeros((40, NUM))
    features[:, 0] = np.arange(40)
    questions = [Question(row[None], row[:1] < 20) for row in features]
    fitted = ranking.fit_ranker(questions)
    assert np.isfinite(fitted.coefficients).all()
    assert fitted.confidence(features[:1])[0] > 0.9 > 0.1 > fitted.confidence(features[-1:])[0]


@pytest.mark.parametrize("name", ["log_rwp_net", "poor_fit", "excess"])
def test_a_worse_fit_never_counts_in_favour(name):
    column = FEATURES.index(name)
    questions = [Question(f, f[:, column] > column) for f, *_ in data(200, at=2)]
    fitted = ranking.fit_ranker(questions)
    assert fitted.coefficients[column] == 0


@pytest.mark.parametrize("matched", [np.zeros(5, bool), np.ones(5, bool)])
def test_nothing_to_learn_is_said(matched):
    with pytest.raises(ValueError, match="needs matches and misses"):
        ranking.fit_ranker([Question(np.zeros((5, NUM)), matched)])


def test_round_trip_through_the_file(tmp_path):
    questions = data(200)
    fitted = ranking.fit_ranker(questions)
    ranking.save_rankers(tmp_path / "ranker.json", {"refined": fitted})
    (read,) = ranking.load_rankers(tmp_path / "ranker.json").values()
    features = questions[0].features
    np.testing.assert_array_equal(read.confidence(features), fitted.confidence(features))


def test_file_of_another_version_is_refused(tmp_path):
    config = ranking.fit_ranker(data(200)).to_config()
    config["features"][2] = "colour"
    (tmp_path / "ranker.json").write_text(json.dumps({"refined": config}))
    with pytest.raises(ValueError, match="fit it again"):
        ranking.load_rankers(tmp_path / "ranker.json")


def test_features_are_found_by_name_and_new_ones_do_not_count():
    questions = data(200)
    old = ranking.fit_ranker(questions, inputs=FEATURES[:-1])
    config = old.to_config()
    at = np.random.default_rng(0).permutation(NUM - 1)
    for key in ("features", "mean", "scale", "coefficients"):
        config[key] = [config[key][i] for i in at]
    read = ranking.ranker_from_config(config)
    features = next(q.features for q in questions if len(q.features) > 1)
    np.testing.assert_allclose(read.confidence(features), old.confidence(features), rtol=1e-12)


def test_features_in_order_and_bounded():
    row = ranking.feature_matrix(
        np.array([1.0]), np.array([0.0]), np.array([0.0]), np.array([0.5]), np.array([0.25]),
        np.array([9.0]), np.array([0.5]), np.array([10]), np.array([3]), np.array([7.0]),
    )  # fmt: skip
    volume = np.log(2.0) - ranking.USUAL_VOLUME
    expected = [[-4, -3, 0, 0, 0.5, 0.25, 0.5, volume, np.log(10), np.log(4), 2]]
    np.testing.assert_allclose(row, expected)

    assert ranking.feature_matrix(*[np.zeros(0)] * 10).shape == (0, NUM)


@pytest.mark.parametrize(("rwp", "poor"), [(0.2, 0.0), (ranking.POOR_RWP * 2, np.log10(2.0))])
def test_a_poor_fit_counts_beyond_its_logarithm(rwp, poor):
    row = ranking.feature_matrix(np.ones(1), np.array([rwp]), *[np.ones(1)] * 8)
    assert row[0, FEATURES.index("poor_fit")] == pytest.approx(poor)
    assert row[0, FEATURES.index("log_rwp_net")] == pytest.approx(np.log10(rwp))


def test_of_equal_structures_the_best_fit_stands_for_all():
    features = np.zeros((5, NUM))
    features[:, FEATURES.index("log_rwp_net")] = [-1.0, -0.5, -1.2, -1.2, 0.0]
    group = np.array([7, 3, 7, 7, 1])
    assert ranking.different(features, group).tolist() == [1, 2, 4]
    assert ranking.different(features[:0], group[:0]).shape == (0,)


@pytest.mark.parametrize("ratio", [1 / 1.5, 1.5])
def test_an_unusual_volume_counts_either_way(ratio):
    at = FEATURES.index("volume")
    ones = [np.ones(1)] * 6
    rows = [
        ranking.feature_matrix(*ones, np.array([r]), *ones[:3])[0, at] for r in (1.05, 1.0, ratio)
    ]
    np.testing.assert_allclose(rows, [0.0, 0.0, np.log(1.5) - ranking.USUAL_VOLUME])


@pytest.mark.parametrize(
    ("own", "cell", "excess"),
    [
        (0.3, 0.3, 0.0),
        (0.15, 0.05, np.log10(2.0) * np.log10(20.0)),  # 0.2 to 0.1: 5 % are added to both
        (0.45, 0.2, np.log10(2.0) * np.log10(5.0)),  # counts less where the cell explains less
        (0.01, 0.0, np.log10(1.2) * 2.0),
        (0.2, 0.3, 0.0),  # a better fit than that of the cell is an accident
        (2.95, 0.05, np.log10(20.0)),  # 30 times, of which 10 count
        (2.95, 1.2, 0.0),
    ],
)
def test_excess_is_how_much_worse_than_its_cell_a_structure_fits(own, cell, excess):
    rest = [np.ones(1)] * 7
    row = ranking.feature_matrix(np.ones(1), np.array([own]), np.array([cell]), *rest)
    assert row.shape == (1, NUM)
    assert row[0, FEATURES.index("excess")] == pytest.approx(excess, abs=1e-12)


def test_questions_without_answer_weigh_as_their_share():
    questions = data(60)
    pool = ranking.pooled(questions[:10], questions[10:])
    weights = np.array([q.weight for q in pool])
    assert weights[10:].sum() / weights.sum() == pytest.approx(ranking.WRONG_SHARE)
    assert ranking.pooled(questions[:3], []) == questions[:3]
    doubled = [q._replace(weight=2.0) for q in questions]
    found = ranking.fit_ranker(doubled, 2.0).coefficients
    expected = ranking.fit_ranker(questions + questions, 2.0).coefficients
    np.testing.assert_allclose(found, expected, atol=1e-4)
