import numpy as np
import pytest

from xtalnet_jax.evaluation.retrieval import (
    mean_reciprocal_rank,
    rank_of_truth,
    recall_at,
    retrieval_report,
)

HAND = np.array(
    [
        [0.9, 0.1, 0.2, 0.3],  # rank 1
        [0.8, 0.7, 0.6, 0.1],  # rank 2
        [0.8, 0.7, 0.1, 0.2],  # rank 4
        [0.5, 0.4, 0.6, 0.5],  # tie with candidate 0: rank 3
    ]
)


def test_ranks_of_a_hand_made_matrix():
    assert rank_of_truth(HAND).tolist() == [1, 2, 4, 3]


def test_constant_similarity_ranks_the_truth_last():
    assert rank_of_truth(np.ones((3, 7))).tolist() == [7, 7, 7]


def test_report_of_a_hand_made_matrix():
    report = retrieval_report(HAND, ks=(1, 3, 10))
    assert [report.recall[k].value for k in (1, 3, 10)] == [0.25, 0.75, 1.0]
    assert report.mrr.value == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 3) / 4)
    assert report.mrr.low < report.mrr.value < report.mrr.high
    assert (report.median_rank, report.num_queries, report.num_candidates) == (2.5, 4, 4)


def test_truth_may_be_elsewhere_and_queries_fewer_than_candidates():
    assert rank_of_truth(HAND[:2], truth=[3, 2]).tolist() == [2, 3]


def test_ranks_follow_a_permutation_of_the_candidates():
    rng = np.random.default_rng(0)
    similarity, order = rng.normal(size=(20, 30)), rng.permutation(30)
    truth = np.array([int(np.flatnonzero(order == i)[0]) for i in range(20)])
    expected = rank_of_truth(similarity, truth=np.arange(20))
    assert rank_of_truth(similarity[:, order], truth=truth).tolist() == expected.tolist()


def test_duplicates_of_the_truth_are_right():
    # Candidates 0 and 1 are one compound: query 1 finds its duplicate first, query 2 has two
    # wrong ones above it, which still count as two.
    ranks = rank_of_truth(HAND, groups=["a", "a", "b", "c"])
    assert ranks.tolist() == [1, 1, 4, 3]


def test_recall_and_mrr_from_ranks():
    assert recall_at([1, 5, 6], 5).value == pytest.approx(2 / 3)
    assert mean_reciprocal_rank([1, 2, 4]).value == pytest.approx(1.75 / 3)


@pytest.mark.parametrize(
    ("similarity", "kwargs", "message"),
    [
        (np.ones(3), {}, "shape"),
        (np.full((2, 2), np.nan), {}, "finite"),
        (np.ones((3, 2)), {}, "truth"),
        (np.ones((2, 2)), {"truth": [0, 2]}, "truth"),
        (np.ones((2, 2)), {"groups": [0]}, "groups"),
    ],
)
def test_bad_input_is_named(similarity, kwargs, message):
    with pytest.raises(ValueError, match=message):
        rank_of_truth(similarity, **kwargs)
