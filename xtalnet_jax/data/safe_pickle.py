"""Unpickling of foreign records that can build NumPy arrays and containers, and do nothing else."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stand-in for ``_codecs.encode``, by which protocols 0-2 write bytes; Latin-1 only."""
    if encoding != "latin1":
        raise ValueError(f"the record asks for the codec {encoding!r}")
    return text.encode("latin1")


def _array_classes() -> dict[tuple[str, str], Any]:
    # NumPy 1 pickles name numpy.core, NumPy 2 pickles numpy._core; both are found by asking this
    # NumPy how it reduces its own objects, so no private name is imported here.
    reconstruct = np.zeros(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    from_buffer = np.zeros(1).__reduce_ex__(5)[0]
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = reconstruct
        allowed[f"{core}.multiarray", "scalar"] = scalar
        allowed[f"{core}.numeric", "_frombuffer"] = from_buffer
    for builtin in (list, dict, tuple, set, frozenset, bytes, bytearray, complex):
        for module in ("builtins", "__builtin__"):
            allowed[module, builtin.__name__] = builtin
    return allowed


_ALLOWED = _array_classes()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise ValueError(
                f"the pickled record asks for {module}.{name}, which is neither a NumPy array nor"
                " a plain container; nothing of it was run"
            ) from None


def loads(data: bytes) -> Any:
    """Unpickle containers, numbers, strings and NumPy arrays.

    Raises:
        ValueError: the record names anything else (which is then not imported and not run), or is
            not a pickle.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data)).load()
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"not a readable pickled record ({error})") from None
