"""Look a pattern up in a database of crystals: the retrieval task of the paper's section 2.3."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from xtalnet_jax.contrastive.index import VectorIndex
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import formula_of
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.solve.solver import Solver, load_solver


class Hit(NamedTuple):
    """One crystal of the database, as similar to the pattern as ``score`` says."""

    rank: int  # from 1
    id: str
    score: float  # cosine similarity of the embeddings, -1..1
    formula: str


class RetrievalIndex(NamedTuple):
    """Embeddings of a database of crystals, and the solver that made them."""

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
        """Embed crystals, a chunk at a time.

        Args:
            crystals: (id, crystal) pairs, or crystals, which are then numbered.
            solver: whose towers to use; the default weights if None.
            chunk: crystals embedded at once.
            progress: called with the number of crystals done.

        Raises:
            ValueError: no crystals, an id that occurs twice, or a crystal too large or flat.
        """
        import numpy as np

        solver = solver or load_solver("default")
        ids: list[str] = []
        formulas: list[str] = []
        vectors: list[np.ndarray] = []
        waiting: list[Crystal] = []
        seen: set[str] = set()

        def flush() -> None:
            if waiting:
                vectors.append(solver.embed_crystals(waiting))
                waiting.clear()
                if progress:
                    progress(len(ids))

        for number, item in enumerate(crystals):
            if isinstance(item, Crystal):
                name, crystal = str(number), item
            else:
                name, crystal = item
            if name in seen:  # found out now, not when all are embedded
                raise ValueError(f"the id {name!r} occurs more than once, expected unique ids")
            seen.add(name)
            ids.append(name)
            formulas.append(formula_of(crystal.atomic_numbers))
            waiting.append(crystal)
            if len(waiting) == chunk:
                flush()
        flush()
        if not ids:
            raise ValueError("there are no crystals to build an index from")
        meta = {"weights": solver.name, "formulas": formulas}
        return cls(VectorIndex.build(np.concatenate(vectors), ids, meta), solver)

    def query(self, pattern: Pattern, k: int = 10) -> list[Hit]:
        """Return the ``k`` crystals most similar to a pattern, best first."""
        k = min(k, len(self.entries.ids))
        scores, rows = self.entries.query_vectors(self.solver.embed_patterns([pattern])[0], k)
        formulas = self.entries.meta["formulas"]
        return [
            Hit(rank, self.entries.ids[i], float(s), formulas[i])
            for rank, (s, i) in enumerate(zip(scores, rows), start=1)
        ]

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
        if not {"weights", "formulas"} <= set(entries.meta):
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
        return cls(entries, solver)
