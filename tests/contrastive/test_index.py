import numpy as np
import pytest

from xtalnet_jax.contrastive import index as index_module
from xtalnet_jax.contrastive.index import VectorIndex


def unit_vectors(n, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "chunk"), [(1000, 64), (1000, 1000), (1, 64), (65, 64), (7, 4)])
def test_equals_a_full_sort(monkeypatch, n, chunk):
    monkeypatch.setattr(index_module, "CHUNK", chunk)
    vectors, queries = unit_vectors(n, 16), unit_vectors(5, 16, seed=1)
    index = VectorIndex.build(vectors, range(n))
    k = min(n, 70)
    scores, indices = index.query_vectors(queries, k)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    assert scores.shape == indices.shape == (5, k)
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, indices, 1), scores, atol=1e-6)
    assert all(len(set(row)) == k for row in indices)
    np.testing.assert_array_equal(index.vectors, vectors)


def test_many_queries_and_a_single_one(monkeypatch):
    monkeypatch.setattr(index_module, "MAX_QUERIES", 4)
    vectors = unit_vectors(50, 8)
    index = VectorIndex.build(vectors, [f"mp-{i}" for i in range(50)])
    scores, indices = index.query_vectors(vectors[:11], 3)
    np.testing.assert_array_equal(indices[:, 0], np.arange(11))
    np.testing.assert_allclose(scores[:, 0], 1.0, atol=1e-6)
    one_scores, one_indices = index.query_vectors(vectors[7], 3)
    np.testing.assert_array_equal(one_indices, indices[7])
    np.testing.assert_allclose(one_scores, scores[7], atol=1e-6)
    assert index.ids[one_indices[0]] == "mp-7"


def test_equal_scores_come_in_order(monkeypatch):
    monkeypatch.setattr(index_module, "CHUNK", 3)
    vector = unit_vectors(1, 4)
    index = VectorIndex.build(np.repeat(vector, 10, 0), range(10))
    np.testing.assert_array_equal(index.query_vectors(vector[0], 10)[1], np.arange(10))


def test_negative_similarities_are_not_beaten_by_padding(monkeypatch):
    monkeypatch.setattr(index_module, "CHUNK", 4)
    vector = unit_vectors(1, 4)
    index = VectorIndex.build(-np.repeat(vector, 5, 0), range(5))
    scores, indices = index.query_vectors(vector[0], 5)
    np.testing.assert_allclose(scores, -1.0, atol=1e-6)
    assert sorted(indices) == list(range(5))


def test_round_trip_and_atomic_save(tmp_path, monkeypatch):
    index = VectorIndex.build(unit_vectors(9, 4), "abcdefghi", {"model": "x", "z": [1, 2]})
    path = tmp_path / "new" / "index.npz"
    index.save(path)
    back = VectorIndex.load(path)
    np.testing.assert_array_equal(back.vectors, index.vectors)
    assert back.ids == index.ids
    assert back.meta == index.meta

    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        VectorIndex.build(unit_vectors(2, 4), "ab").save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["index.npz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.ones((3, 4))}, "vector 0 has norm 2, expected 1"),
        ({"vectors": np.full((3, 4), np.nan)}, "vector 0 has norm nan"),
        ({"vectors": np.ones(4)}, r"vectors has shape \(4,\)"),
        ({"ids": "ab"}, "2 ids for 3 vectors"),
        ({"ids": "aba"}, "the id 'a' occurs more than once"),
        ({"meta": {"x": np.zeros(2)}}, "meta cannot be written as JSON"),
    ],
)
def test_build_refuses(change, message):
    good = {"vectors": unit_vectors(3, 4), "ids": "abc"}
    with pytest.raises(ValueError, match=message):
        VectorIndex.build(**{**good, **change})


def test_query_and_files_refuse(tmp_path):
    index = VectorIndex.build(unit_vectors(3, 4), "abc")
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k}, expected 1 to 3"):
            index.query_vectors(unit_vectors(1, 4), k)
    with pytest.raises(ValueError, match="width 4"):
        index.query_vectors(unit_vectors(1, 5), 1)
    with pytest.raises(ValueError, match="not finite"):
        index.query_vectors(np.full(4, np.nan), 1)
    with pytest.raises(ValueError, match=r"ending in \.npz"):
        index.save(tmp_path / "index")
    with pytest.raises(FileNotFoundError):
        VectorIndex.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", vectors=np.ones(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match="is not a retrieval index"):
            VectorIndex.load(tmp_path / name)
