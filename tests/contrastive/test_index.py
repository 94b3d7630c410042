import numpy as np
import pytest

from xtalnet_jax.contrastive import index as index_module
from xtalnet_jax.contrastive.index import VectorIndex


def unit_vectors(n, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("n", "chunk", "group"),
    [(1000, 64, 4), (1000, 1000, 16), (1, 64, 16), (65, 64, 2), (7, 4, 4), (2000, 64, 1)],
)
def test_equals_a_full_sort(monkeypatch, n, chunk, group):
    monkeypatch.setattr(index_module, "CHUNK", chunk)
    monkeypatch.setattr(index_module, "GROUP", group)
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


def close_neighbours(n, d, spread, seed=0):
    """Unit vectors that differ by far less than a byte can tell."""
    x = unit_vectors(1, d, seed) + spread * unit_vectors(n, d, seed + 1)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("spread", [1e-3, 0.03, 1.0])
@pytest.mark.parametrize("k", [1, 10])
def test_bytes_do_not_decide(monkeypatch, spread, k):
    """The scan alone would get it wrong here; the answer is exact all the same."""
    monkeypatch.setattr(index_module, "CHUNK", 256)
    vectors = np.concatenate([close_neighbours(1500, 24, spread), unit_vectors(1500, 24, 9)])
    vectors = vectors[np.random.default_rng(2).permutation(len(vectors))]
    queries = close_neighbours(20, 24, spread, seed=5)
    index = VectorIndex.build(vectors, range(len(vectors)))
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index.query_vectors(queries, k)[1], expected)
    if spread < 0.1 and k > 1:
        coded = np.asarray(index.codes, np.float64) * np.asarray(index.scale, np.float64)[..., None]
        rough = queries @ coded.reshape(-1, 24)[: len(vectors)].T
        assert (np.argsort(-rough, axis=1, kind="stable")[:, :k] != expected).any()


def test_error_of_the_bytes_is_bounded_and_the_scan_is_narrow():
    vectors = unit_vectors(20000, 64)
    index = VectorIndex.build(vectors, range(len(vectors)))
    coded = np.asarray(index.codes, np.float64) * np.asarray(index.scale, np.float64)[..., None]
    left = vectors - coded.reshape(-1, 64)[: len(vectors)]
    assert index.error == pytest.approx(np.linalg.norm(left, axis=1).max(), rel=1e-9)
    compared = []

    class Counted(VectorIndex):
        def _exact(self, query, k, rows):
            compared.append(len(rows))
            return super()._exact(query, k, rows)

    Counted(*index).query_vectors(unit_vectors(8, 64, seed=3), 10)
    assert max(compared) < 0.1 * len(vectors)


@pytest.mark.parametrize("few", [0, 10**6])
@pytest.mark.parametrize("share", [0.002, 0.3, 1.0])
def test_only_allowed_entries_are_found(monkeypatch, few, share):
    monkeypatch.setattr(index_module, "FEW", few)
    vectors, queries = unit_vectors(3000, 16), unit_vectors(3, 16, seed=1)
    index = VectorIndex.build(vectors, range(3000))
    allowed = np.random.default_rng(4).random(3000) < share
    k = min(7, int(allowed.sum()))
    scores, indices = index.query_vectors(queries, k, allowed)
    exact = np.where(allowed[None], queries.astype(np.float64) @ vectors.T, -np.inf)
    np.testing.assert_array_equal(indices, np.argsort(-exact, axis=1, kind="stable")[:, :k])
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :k], atol=1e-6)
    with pytest.raises(ValueError, match=f"expected 1 to {allowed.sum()}"):
        index.query_vectors(queries, int(allowed.sum()) + 1, allowed)
    with pytest.raises(ValueError, match="allowed has shape"):
        index.query_vectors(queries, 1, allowed[:-1])


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
    arrays = {"offset": np.arange(3), "few": np.float32([0.5])}
    index = VectorIndex.build(unit_vectors(9, 4), "abcdefghi", {"model": "x", "z": [1, 2]}, arrays)
    path = tmp_path / "new" / "index.npz"
    index.save(path)
    back = VectorIndex.load(path)
    np.testing.assert_array_equal(back.vectors, index.vectors)
    assert back.ids == index.ids
    assert back.meta == index.meta
    assert back.arrays.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(back.arrays[name], values)

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
