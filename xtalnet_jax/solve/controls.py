"""Questions to which the solver has no right answer: what a wrong pattern or formula looks like.

A model that solves a crystal as well without its pattern has not looked at it; a verdict that is
right for right formulas only is worth nothing. Ranker and tables need both kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from xtalnet_jax.crystals.elements import SYMBOLS, has_radius
from xtalnet_jax.solve.assess import Item

LEAST_DIFFERENCE = 0.15
"""Of the numbers of electrons, relative, and at least 3: atoms nearer look alike to X-rays."""


def patterns_shuffled(items: Sequence[Item], seed: int = 0) -> list[Item]:
    """Give every item the pattern of the next one, the last that of the first."""
    patterns = [item.pattern for item in items]
    return [i._replace(pattern=p) for i, p in zip(items, patterns[1:] + patterns[:1])]


def element_exchanged(items: Sequence[Item], seed: int = 0) -> list[Item]:
    """Claim for one element of every item that it is a chemically similar one.

    Similar is at most three columns and one row away in the periodic table. What fits then is at
    best the right arrangement of wrong atoms; candidates never match the truth.
    """
    out = []
    for item in items:
        rng = np.random.default_rng([seed, *item.id.encode()])
        numbers = np.array(item.numbers)
        present = np.unique(numbers)
        choices = [(z, other) for z in present for other in _similar(int(z), set(present.tolist()))]
        if choices:
            own, other = choices[rng.integers(len(choices))]
            numbers[numbers == own] = other
        out.append(item._replace(composition=numbers))
    return out


CONTROLS: Mapping[str, tuple[str, Callable[[Sequence[Item], int], list[Item]]]] = {
    "shuffled": ("patterns shuffled", patterns_shuffled),
    "exchanged": ("one element exchanged", element_exchanged),
}
"""Name of a control's folder -> its name in tables, and what makes its items."""


def is_control(folder: str | Path) -> bool:
    """Whether a folder of records is of a control."""
    return Path(folder).name in CONTROLS


def _similar(number: int, present: set[int]) -> list[int]:
    from pymatgen.core import Element

    own = Element.from_Z(number)
    return [
        z
        for z in range(1, len(SYMBOLS))
        if has_radius(z)
        and z not in present
        and abs(z - number) >= max(3, LEAST_DIFFERENCE * number)
        and abs(Element.from_Z(z).group - own.group) <= 3
        and abs(Element.from_Z(z).row - own.row) <= 1
    ]
