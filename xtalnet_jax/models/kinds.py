"""Which network a recipe means: ``{"kind": "transformer", "width": 192, ...}`` to a module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn


def module_of_kind(kinds: Mapping[str, type[nn.Module]], fields: Mapping[str, Any]) -> Any:
    """Build the module that ``fields["kind"]`` names ("cspnet" if absent) from the other fields.

    Raises:
        ValueError: there is no such kind, or it has no such field.
    """
    kind = fields.get("kind", "cspnet")
    if kind not in kinds:
        names = " or ".join(f'"{name}"' for name in kinds)
        raise ValueError(f'network.kind is "{kind}", expected {names}')
    options = {name: value for name, value in fields.items() if name != "kind"}
    known = {f.name for f in dataclasses.fields(kinds[kind])} - {"parent", "name"}
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f'a network of kind "{kind}" has no field {", ".join(unknown)}; its fields are '
            f"{', '.join(sorted(known))}"
        )
    return kinds[kind](**options)
