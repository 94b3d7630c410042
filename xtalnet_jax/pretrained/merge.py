"""Put weights of one model into another, by path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax.types import Params


class Merged(NamedTuple):
    """Result of `merge_params`; keys are paths like ``params/decoder/layer_0/norm/scale``."""

    params: Params  # of the new model, taken over where possible
    missing: list[str]  # of the new model, not in the loaded weights: still as initialised
    extra: list[str]  # in the loaded weights, without a place in the new model


def _paths(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        path: leaf
        for name, value in tree.items()
        for path, leaf in _paths(value, f"{prefix}/{name}" if prefix else name).items()
    }


def merge_params(loaded: Params, inited: Params) -> Merged:
    """Put loaded weights into freshly initialised ones where the paths agree.

    The pattern encoder has the same path in every model, so CPCP weights loaded into a generator
    bring their encoder and nothing else.

    Raises:
        ValueError: arrays of the same path differ in shape (all are listed), or no path agrees.
    """
    old, new = _paths(loaded), _paths(inited)
    common = [k for k in new if k in old]
    wrong = [k for k in common if np.shape(old[k]) != np.shape(new[k])]
    if wrong:
        listed = "; ".join(f"{k}: {np.shape(old[k])} for {np.shape(new[k])}" for k in wrong[:8])
        raise ValueError(f"{len(wrong)} weights have another shape than the model: {listed}")
    if not common:
        raise ValueError(
            f"no weight has a place in the model; first loaded: {next(iter(old), None)}"
        )

    def fill(tree: Any, prefix: str = "") -> Any:
        if not isinstance(tree, Mapping):
            return old.get(prefix, tree)
        return {k: fill(v, f"{prefix}/{k}" if prefix else k) for k, v in tree.items()}

    missing, extra = [k for k in new if k not in old], [k for k in old if k not in new]
    return Merged(fill(inited), missing, extra)
