"""Exact nearest-neighbour search among unit vectors: the database a pattern is looked up in.

Reading the vectors is what a search costs, so they are scanned as bytes: v = s c + e with integers
c of at most 127 and |e| <= ``error``, known exactly. With scores q.(s c) no more than
|q| (``error`` + rounding) from the true ones, a group of vectors whose best score is more than
twice that below the k-th best group holds none of the k best (`_group_maxima`). The few groups left
are compared again in float64, so the answer is that of a full search.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = "xtalnet_jax retrieval index 1"
CHUNK = 1 << 13
"""Vectors compared at once: large enough for a fast product, small enough to stay in the cache."""
GROUP = 16
"""Neighbouring vectors of which the scan keeps the best score."""
MAX_QUERIES = 64
"""Queries compared at once."""
FEW = 1 << 12
"""Up to so many allowed vectors the scan is not worth it."""


class VectorIndex(NamedTuple):
    """Unit vectors with names; build one with `build`, ask with `query_vectors`."""

    vectors: np.ndarray  # [n, d] float32
    codes: jax.Array  # [n_chunk, chunk, d] int8, the vectors in steps of their scale
    scale: jax.Array  # [n_chunk, chunk] float32, 0 after the last entry
    error: float  # largest norm of vector - scale * code
    ids: tuple[str, ...]  # one per entry
    meta: Mapping[str, Any]  # whatever JSON can hold: model, data set
    arrays: Mapping[str, np.ndarray]  # what belongs to the entries and is saved with them

    @classmethod
    def build(
        cls,
        vectors: Any,
        ids: Sequence[Any],
        meta: Mapping[str, Any] | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> VectorIndex:
        """Make an index.

        Args:
            vectors: [n, d] unit vectors.
            ids: n names (turned into ``str``), unique.
            meta: anything JSON can hold, saved with the index.
            arrays: further arrays of numbers, saved with the index.

        Raises:
            ValueError: shapes that do not fit, vectors that are not finite or not of norm 1, names
                that occur twice, or meta that JSON cannot hold.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ValueError(f"vectors has shape {vectors.shape}, expected (n, d) with n, d > 0")
        norm = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        bad = np.flatnonzero(~(np.abs(norm - 1) < 1e-2))
        if bad.size:
            raise ValueError(
                f"vector {bad[0]} has norm {norm[bad[0]]:g}, expected 1: divide by the norm "
                f"({bad.size} of {len(norm)} vectors are not unit vectors)"
            )
        names = tuple(str(name) for name in ids)
        if len(names) != len(vectors):
            raise ValueError(f"{len(names)} ids for {len(vectors)} vectors, expected one for each")
        if len(set(names)) != len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise ValueError(f"the id {twice!r} occurs more than once, expected unique ids")
        meta = dict(meta or {})
        try:
            json.dumps(meta)
        except TypeError as error:
            raise ValueError(f"meta cannot be written as JSON: {error}") from error
        return cls(vectors, *_quantise(vectors), names, meta, dict(arrays or {}))

    def query_vectors(
        self, queries: Any, k: int = 10, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k entries of highest cosine similarity, exactly, best first.

        Equal similarities are ordered by index. The first call with a new power of two of queries
        compiles.

        Args:
            queries: [n_query, d] or [d] unit vectors.
            k: number of entries, 1 to the number of allowed ones.
            allowed: [n] bool, the entries to search among; None means all.

        Returns:
            ``(scores, indices)``, [n_query, k] each (or [k] for a single query); the name of an
            entry is ``index.ids[i]``.

        Raises:
            ValueError: a wrong width, queries that are not finite, or k out of range.
        """
        queries = np.asarray(queries, np.float32)
        size, width = self.vectors.shape
        if queries.ndim not in (1, 2) or queries.shape[-1] != width or queries.size == 0:
            raise ValueError(
                f"queries has shape {queries.shape}, expected (n, {width}) or ({width},): the "
                f"index holds vectors of width {width}"
            )
        if allowed is not None and (allowed.shape != (size,) or allowed.dtype != bool):
            raise ValueError(
                f"allowed has shape {allowed.shape} and type {allowed.dtype}, expected ({size},) "
                "and bool"
            )
        num_allowed = size if allowed is None else int(allowed.sum())
        if not 1 <= k <= num_allowed:
            which = "the size of the index" if allowed is None else "the number of allowed entries"
            raise ValueError(f"k is {k}, expected 1 to {num_allowed}, {which}")
        if not np.isfinite(queries).all():
            raise ValueError("a query is not finite: the encoder returned NaN or infinity")
        found = [
            exact
            for part in _parts(queries.reshape(-1, width), MAX_QUERIES)
            for exact in self._query_part(part, k, allowed, num_allowed)
        ]
        scores, indices = (np.stack(x).reshape(*queries.shape[:-1], k) for x in zip(*found))
        return scores, indices

    def _query_part(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None, num_allowed: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        if allowed is not None and num_allowed <= max(k, FEW):
            rows = np.flatnonzero(allowed)
            return [self._exact(query, k, rows) for query in queries]
        scale = self.scale
        if allowed is not None:
            mask = np.zeros(scale.size, bool)
            mask[: len(allowed)] = allowed
            scale = jnp.where(mask.reshape(scale.shape), scale, 0.0)
        padded = np.zeros((1 << (len(queries) - 1).bit_length(), queries.shape[1]), np.float32)
        padded[: len(queries)] = queries
        best = np.asarray(_group_maxima(self.codes, scale, padded, GROUP))
        found = []
        for query, maxima in zip(queries, best):
            groups = np.flatnonzero(maxima >= self._least(query, maxima, k))
            rows = (groups[:, None] * GROUP + np.arange(GROUP)[None]).reshape(-1)
            rows = rows[rows < len(self.vectors)]
            found.append(self._exact(query, k, rows if allowed is None else rows[allowed[rows]]))
        return found

    def _least(self, query: np.ndarray, maxima: np.ndarray, k: int) -> float:
        """Score of the scan below which a group cannot hold one of the k best."""
        if k > len(maxima):
            return -np.inf
        width = len(query)
        # A sum of d float32 products is off by at most about d 2^-24 sum |q_i s c_i| (Higham,
        # Accuracy and Stability of Numerical Algorithms, sec. 3.1); twice that is on the safe side.
        rounding = 2 * (width + 4) * 2.0**-24
        slack = float(np.linalg.norm(query.astype(np.float64))) * (self.error + rounding)
        return float(np.partition(maxima, -k)[-k]) - 2 * slack

    def _exact(self, query: np.ndarray, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k best of some rows, in float64 (every row by the same order of summation)."""
        exact = query.astype(np.float64)
        scores = np.concatenate(
            [
                np.einsum("nd,d->n", self.vectors[part].astype(np.float64), exact)
                for part in _parts(rows, CHUNK)
            ]
        )
        order = np.lexsort((rows, -scores))[:k]
        return scores[order].astype(np.float32), rows[order].astype(np.int32)

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file; it is complete or not there, even if the process dies.

        Raises:
            ValueError: ``path`` does not end in ``.npz``.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"the path of an index is {str(path)!r}, expected one ending in .npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        header = json.dumps({"format": FORMAT, "ids": self.ids, "meta": self.meta})
        content: dict[str, Any] = {
            f"{_PREFIX}{name}": values for name, values in self.arrays.items()
        }
        content["vectors"] = self.vectors
        content["header"] = np.frombuffer(header.encode(), np.uint8)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> VectorIndex:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no index of this format (or of a later one).
            FileNotFoundError: there is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                vectors, header = data["vectors"], json.loads(data["header"].tobytes())
                names = [name for name in data.files if name.startswith(_PREFIX)]
                arrays = {name.removeprefix(_PREFIX): data[name] for name in names}
            if header["format"] != FORMAT:
                raise ValueError(header["format"])
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path} is not a retrieval index ({FORMAT!r}): {type(error).__name__}: {error}"
            ) from error
        return cls.build(vectors, header["ids"], header["meta"], arrays)


_PREFIX = "array_"


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, max(len(rows), 1), size)]


def _quantise(vectors: np.ndarray) -> tuple[jax.Array, jax.Array, float]:
    """Vectors as bytes with a scale each, cut into chunks, and the largest error made."""
    size, width = vectors.shape
    chunk = -(-min(CHUNK, size) // GROUP) * GROUP
    codes = np.zeros((-(-size // chunk), chunk, width), np.int8)
    scale = np.zeros(codes.shape[:2], np.float32)
    largest = 0.0
    for code, step, part in zip(codes, scale, _parts(vectors, chunk)):
        n = len(part)
        step[:n] = np.abs(part).max(1) / 127
        code[:n] = np.rint(part / step[:n, None])
        left = part.astype(np.float64) - step[:n, None].astype(np.float64) * code[:n]
        largest = max(largest, float(np.sqrt(np.einsum("nd,nd->n", left, left).max())))
    return jnp.asarray(codes), jnp.asarray(scale), largest


@partial(jax.jit, static_argnums=3)
def _group_maxima(codes: jax.Array, scale: jax.Array, queries: Any, group: int) -> jax.Array:
    """Best score of every group of vectors for every query, [n_query, n_group]; scale 0: none."""

    def scan(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        code, step = part
        vectors = code.astype(queries.dtype)
        scores = jnp.matmul(queries, vectors.T, precision="highest") * step[None]
        scores = jnp.where(step[None] > 0, scores, -jnp.inf)
        return scores.reshape(len(queries), -1, group).max(-1)

    maxima = jax.lax.map(scan, (codes, scale))
    return jnp.swapaxes(maxima, 0, 1).reshape(len(queries), -1)
