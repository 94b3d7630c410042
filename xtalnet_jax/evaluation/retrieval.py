"""How well a similarity finds the true crystal among many: rank, recall@k, mean reciprocal rank.

Ties count against us: a model that gives every crystal the same similarity ranks the truth last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.evaluation.intervals import Estimate, bootstrap, wilson


class RetrievalReport(NamedTuple):
    """Retrieval metrics of one set of queries."""

    recall: Mapping[int, Estimate]  # k -> fraction of queries whose truth is among the top k
    mrr: Estimate  # mean of 1/rank
    median_rank: float
    num_queries: int
    num_candidates: int


def rank_of_truth(similarity: Any, truth: Any = None, groups: Any = None) -> np.ndarray:
    """Rank (1 = best) of the true candidate of every query.

    ``rank = 1 + #{wrong candidates with similarity >= similarity of the truth}``.

    Args:
        similarity: [n_query, n_candidate], higher is more similar.
        truth: [n_query] index of the true candidate; None means candidate i for query i.
        groups: [n_candidate] label; candidates with the label of the truth are duplicates of it, so
            finding any of them is right. None means that all candidates differ.

    Returns:
        [n_query] int.

    Raises:
        ValueError: shapes do not fit, an index is out of range, or a similarity is not finite.
    """
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or not similarity.size:
        raise ValueError(
            f"similarity has shape {similarity.shape}; expected [n_query, n_candidate]"
        )
    if not np.isfinite(similarity).all():
        raise ValueError("similarity has values that are not finite; check the embeddings")
    num_queries, num_candidates = similarity.shape
    truth = np.arange(num_queries) if truth is None else np.asarray(truth)
    if truth.shape != (num_queries,) or truth.min() < 0 or truth.max() >= num_candidates:
        raise ValueError(
            f"truth must hold {num_queries} indices below {num_candidates}, got shape {truth.shape}"
            f" with values {truth.min()} to {truth.max()}; give `truth` where query i is not "
            "candidate i"
        )
    groups = np.arange(num_candidates) if groups is None else np.asarray(groups)
    if groups.shape != (num_candidates,):
        raise ValueError(f"groups has shape {groups.shape}; expected ({num_candidates},)")
    ranks = np.empty(num_queries, np.int64)
    for i, row in enumerate(similarity):  # row by row: the masks of 9,000 x 9,000 stay small
        is_right = groups == groups[truth[i]]
        ranks[i] = 1 + np.count_nonzero(row[~is_right] >= row[is_right].max())
    return ranks


def recall_at(ranks: Any, k: int) -> Estimate:
    """Fraction of ranks (1 = best) that are at most ``k``, with its Wilson interval."""
    ranks = np.asarray(ranks)
    return wilson(int(np.count_nonzero(ranks <= k)), ranks.size)


def mean_reciprocal_rank(ranks: Any, seed: int = 0) -> Estimate:
    """Mean of 1/rank, with its bootstrap interval over the queries."""
    reciprocal = 1.0 / np.asarray(ranks, np.float64)
    return bootstrap(lambda index: float(reciprocal[index].mean()), reciprocal.size, seed=seed)


def retrieval_report(
    similarity: Any,
    truth: Any = None,
    groups: Any = None,
    ks: Sequence[int] = (1, 3, 5, 10),
) -> RetrievalReport:
    """All retrieval metrics of a similarity matrix; see `rank_of_truth` for the arguments.

    Example:
        >>> report = retrieval_report([[0.9, 0.1], [0.8, 0.3]], ks=(1, 2))
        >>> [report.recall[k].value for k in (1, 2)], report.mrr.value
        ([0.5, 1.0], 0.75)
    """
    ranks = rank_of_truth(similarity, truth, groups)
    return RetrievalReport(
        recall={k: recall_at(ranks, k) for k in ks},
        mrr=mean_reciprocal_rank(ranks),
        median_rank=float(np.median(ranks)),
        num_queries=len(ranks),
        num_candidates=np.asarray(similarity).shape[1],
    )
