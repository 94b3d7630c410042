"""Refinement of crystals against a powder pattern.

The package carries the name of its main function, which `xtalnet_jax` offers as
``xtalnet_jax.refine(...)``: whichever of the two was imported first, the name can be called.
"""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `refine.refine`."""
        from xtalnet_jax.refine.refine import refine

        return refine(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
