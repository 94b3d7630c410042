"""Look a pattern up in a database of crystals: the retrieval task of the paper's section 2.3.

The embeddings give a shortlist out of millions; the shortlist is put in order by comparing the
lines of each crystal with the measured peaks. What is known of the composition is a filter on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xtalnet_jax.contrastive.index import VectorIndex
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import formula_of
from xtalnet_jax.pxrd.kalpha import single_wavelength
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.solve.crystal_table import Composition, CrystalTable
from xtalnet_jax.solve.screen import agreement
from xtalnet_jax.solve.solver import Solver, load_solver

RERANK = 50
"""Crystals of the shortlist that are compared with the peaks."""
STRETCH = 0.02
"""Largest relative error of a database cell that is put up with (temperature, calculation)."""


class Hit(NamedTuple):
    """One crystal of the database, as similar to the pattern as ``score`` says."""

    rank: int  # from 1
    id: str
    score: float  # cosine similarity of the embeddings, -1..1
    formula: str
    agreement: float | None = None  # of lines and peaks, 0..1; None where they were not compared


class RetrievalIndex(NamedTuple):
    """Embeddings of a database of crystals, the crystals, and the solver that embedded them."""

    entries: VectorIndex
    solver: Solver

    @classmethod
    def build(
        cls,
        crystals: Iterable[tuple[str, Crystal] | Crystal],
        solver: Solver | None = None,
        chunk: int = 1024,
        progress: Callable[[int], None] | None = None,
    ) -> RetrievalIndex:
        """Embed crystals in memory, a chunk at a time; `retrieval_build.build_file` can resume.

        Args:
            crystals: (id, crystal) pairs, or crystals, which are then numbered.
            solver: whose towers to use; the default weights if None.
            chunk: crystals embedded at once.
            progress: called with the number of crystals done.

        Raises:
            ValueError: no crystals, an id that occurs twice, or a crystal too large or flat.
        """
        solver = solver or load_solver("default")
        kept: dict[str, Crystal] = {}
        vectors: list[np.ndarray] = []
        waiting: list[Crystal] = []

        def flush() -> None:
            if waiting:
                vectors.append(solver.embed_crystals(waiting))
                waiting.clear()
                if progress:
                    progress(len(kept))

        for number, item in enumerate(crystals):
            name, crystal = (str(number), item) if isinstance(item, Crystal) else item
            if name in kept:  # found out now, not when all are embedded
                raise ValueError(f"the id {name!r} occurs more than once, expected unique ids")
            kept[name] = crystal
            waiting.append(crystal)
            if len(waiting) == chunk:
                flush()
        flush()
        if not kept:
            raise ValueError("there are no crystals to build an index from")
        table = CrystalTable.from_crystals(list(kept.values()))
        return cls.from_table(np.concatenate(vectors), list(kept), table, solver)

    @classmethod
    def from_table(
        cls,
        vectors: np.ndarray,
        ids: Sequence[str],
        table: CrystalTable,
        solver: Solver,
        **meta: str,
    ) -> RetrievalIndex:
        """Put embeddings [n, d] that ``solver`` made of the crystals of ``table`` together."""
        made_with = {"weights": solver.name, "fingerprint": solver.embedder_fingerprint}
        meta = {**meta, **made_with}
        return cls(VectorIndex.build(vectors, ids, meta, table._asdict()), solver)

    @property
    def crystals(self) -> CrystalTable:
        """The crystals, in the order of the entries."""
        return CrystalTable.from_arrays(self.entries.arrays)

    def query(
        self,
        pattern: Pattern,
        k: int = 10,
        *,
        formula: str | None = None,
        elements: Sequence[str] = (),
        only_elements: Sequence[str] | None = None,
        exclude_elements: Sequence[str] = (),
        rerank: int = RERANK,
    ) -> list[Hit]:
        """Return the ``k`` best crystals for a pattern, fewer where fewer pass the filters.

        Args:
            pattern: measured or calculated.
            k: how many.
            formula: only crystals of this formula or a multiple of it.
            elements: only crystals that contain all of these.
            only_elements: only crystals that contain nothing else.
            exclude_elements: only crystals that contain none of these.
            rerank: so many of the most similar crystals are put in the order of `screen.agreement`
                over the measured range; 0 leaves them in the order of similarity.

        Raises:
            ValueError: ``k`` or ``rerank`` out of range, a pattern without peaks, an unknown
                element or a formula that cannot be read.
        """
        if k < 1 or rerank < 0:
            raise ValueError(f"k is {k} and rerank {rerank}, expected at least 1 and 0")
        table = self.crystals
        known = Composition(formula, elements, only_elements, exclude_elements)
        allowed = table.having(known)
        num_allowed = table.num_crystals if allowed is None else int(allowed.sum())
        if not num_allowed:
            return []
        pattern = single_wavelength(pattern)
        vector = self.solver.embed_patterns([pattern])[0]
        length = min(max(k, rerank), num_allowed)
        scores, rows = self.entries.query_vectors(vector, length, allowed)
        crystals = [table.crystal(i) for i in rows.tolist()]
        compared: list[float | None] = [None] * length
        order = np.arange(length)
        if rerank:
            peaks = self.solver.peaks_of([pattern])
            cosine = agreement(crystals[:rerank], peaks, float(pattern.wavelength), STRETCH)
            compared[: len(cosine)] = cosine.tolist()
            order[: len(cosine)] = np.argsort(-cosine, kind="stable")
        return [
            Hit(rank, self.entries.ids[rows[i]], float(scores[i]), formula_of(crystals[i][0]),
                compared[i])
            for rank, i in enumerate(order[:k], start=1)
        ]  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file; the weights are named in it, not contained."""
        self.entries.save(path)

    @classmethod
    def load(cls, path: str | Path, solver: Solver | None = None) -> RetrievalIndex:
        """Read what `save` wrote.

        Raises:
            ValueError: no index, or one made with other weights than ``solver``'s.
        """
        entries = VectorIndex.load(path)
        if "weights" not in entries.meta or not set(CrystalTable._fields) <= set(entries.arrays):
            raise ValueError(
                f"{path} is no index of crystals; build it with launch.retrieve --build"
            )
        made_with = entries.meta["weights"]
        solver = solver or load_solver(made_with)
        if solver.name != made_with:
            raise ValueError(
                f"{path} was built with the weights {made_with!r}, not {solver.name!r}: "
                "build it again or use those"
            )
        if entries.meta.get("fingerprint") != solver.embedder_fingerprint:
            raise ValueError(
                f"{path} was built with other weights than those that are called {made_with!r} "
                "now: build it again"
            )
        return cls(entries, solver)
