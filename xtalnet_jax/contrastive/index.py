"""Exact nearest-neighbour search among unit vectors: the database a pattern is looked up in."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = "xtalnet_jax retrieval index 1"
CHUNK = 1 << 16
"""Rows compared at once: large enough for a fast product, small enough to stay out of the way."""
MAX_QUERIES = 256
"""Queries compared at once."""


class VectorIndex(NamedTuple):
    """Unit vectors with names; build one with `build`, ask with `query_vectors`."""

    blocks: jax.Array  # [n_chunk, chunk, d] float32, zero rows after the last entry
    ids: tuple[str, ...]  # one per entry
    meta: Mapping[str, Any]  # whatever JSON can hold: model, data set, columns of properties

    @classmethod
    def build(
        cls, vectors: Any, ids: Sequence[Any], meta: Mapping[str, Any] | None = None
    ) -> VectorIndex:
        """Make an index.

        Args:
            vectors: [n, d] unit vectors.
            ids: n names (turned into ``str``), unique.
            meta: anything JSON can hold, saved with the index.

        Raises:
            ValueError: shapes that do not fit, vectors that are not finite or not of norm 1, names
                that occur twice, or meta that JSON cannot hold.
        """
        vectors = np.asarray(vectors, np.float32)
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
            twice = next(name for i, name in enumerate(names) if name in set(names[:i]))
            raise ValueError(f"the id {twice!r} occurs more than once, expected unique ids")
        meta = dict(meta or {})
        try:
            json.dumps(meta)
        except TypeError as error:
            raise ValueError(f"meta cannot be written as JSON: {error}") from error
        chunk = min(CHUNK, len(vectors))
        blocks = np.zeros((-(-len(vectors) // chunk), chunk, vectors.shape[1]), np.float32)
        blocks.reshape(-1, vectors.shape[1])[: len(vectors)] = vectors
        return cls(jnp.asarray(blocks), names, meta)

    @property
    def vectors(self) -> np.ndarray:
        """[n, d] float32, the entries in order."""
        return np.asarray(self.blocks).reshape(-1, self.blocks.shape[-1])[: len(self.ids)]

    def query_vectors(self, queries: Any, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Find the k entries of highest cosine similarity, exactly, best first.

        Equal similarities are ordered by index. The first call with a new k or a new power of two
        of queries compiles.

        Args:
            queries: [n_query, d] or [d] unit vectors.
            k: number of entries, 1 to the size of the index.

        Returns:
            ``(scores, indices)``, [n_query, k] each (or [k] for a single query); the name of an
            entry is ``index.ids[i]``.

        Raises:
            ValueError: a wrong width, queries that are not finite, or k out of range.
        """
        queries = np.asarray(queries, np.float32)
        width = self.blocks.shape[-1]
        if queries.ndim not in (1, 2) or queries.shape[-1] != width or queries.size == 0:
            raise ValueError(
                f"queries has shape {queries.shape}, expected (n, {width}) or ({width},): the "
                f"index holds vectors of width {width}"
            )
        if not 1 <= k <= len(self.ids):
            raise ValueError(f"k is {k}, expected 1 to {len(self.ids)}, the size of the index")
        if not np.isfinite(queries).all():
            raise ValueError("a query is not finite: the encoder returned NaN or infinity")
        flat = queries.reshape(-1, width)
        parts = [
            self._query_part(flat[i : i + MAX_QUERIES], k) for i in range(0, len(flat), MAX_QUERIES)
        ]
        shape = (*queries.shape[:-1], k)
        scores, indices = (np.concatenate(x).reshape(shape) for x in zip(*parts))
        return scores, indices

    def _query_part(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((1 << (len(queries) - 1).bit_length(), queries.shape[1]), np.float32)
        padded[: len(queries)] = queries
        found = _top_k(self.blocks, jnp.asarray(padded), len(self.ids), k)
        scores, indices = (np.asarray(x)[: len(queries)] for x in found)
        return scores, indices

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
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(
                    file, vectors=self.vectors, header=np.frombuffer(header.encode(), np.uint8)
                )
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
            if header["format"] != FORMAT:
                raise ValueError(header["format"])
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path} is not a retrieval index ({FORMAT!r}): {type(error).__name__}: {error}"
            ) from error
        return cls.build(vectors, header["ids"], header["meta"])


@partial(jax.jit, static_argnums=(2, 3))
def _top_k(
    blocks: jax.Array, queries: jax.Array, num_entries: int, k: int
) -> tuple[jax.Array, jax.Array]:
    """Running top k over the chunks: scores and indices [n_query, k], best first."""
    num_chunks, chunk, _ = blocks.shape
    within = min(k, chunk)

    def body(
        best: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        first, block = part
        scores = jnp.matmul(queries, block.T, precision="highest")
        real = first + jnp.arange(chunk) < num_entries
        scores, local = jax.lax.top_k(jnp.where(real[None], scores, -jnp.inf), within)
        # what was found before stands first: top_k keeps the lower index among equals
        scores = jnp.concatenate([best[0], scores], 1)
        indices = jnp.concatenate([best[1], first + local], 1)
        scores, order = jax.lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(indices, order, 1)), None

    start = (
        jnp.full((len(queries), k), -jnp.inf, queries.dtype),
        jnp.zeros((len(queries), k), jnp.int32),
    )
    firsts = jnp.arange(num_chunks, dtype=jnp.int32) * chunk
    return jax.lax.scan(body, start, (firsts, blocks))[0]
