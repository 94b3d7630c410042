"""Read the tensors of a PyTorch ``.pt`` or ``.ckpt`` zip archive without PyTorch.

A pickle names functions to call. Here only the few names that rebuild a tensor are known; names of
the training framework's own bookkeeping become inert objects that ignore all they are given; every
other name refuses the file. Nothing of the archive is ever executed.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STORAGE_TYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_BOOKKEEPING: tuple[str, ...]
_BOOKKEEPING = ("collections", "hydra", "lightning", "lightning_fabric", "numpy", "omegaconf")
_BOOKKEEPING += ("pathlib", "pytorch_lightning", "torch", "typing")
_PLAIN_TYPES: tuple[str, ...]
_PLAIN_TYPES = ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int")
_PLAIN_TYPES += ("list", "long", "object", "set", "str", "tuple", "unicode")
_BUILTINS = ("builtins", "__builtin__")  # the second is the name in old pickle protocols


class _Inert:
    """Stands for an object that is not a tensor: it takes anything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Drop the value."""

    def extend(self, values: Any) -> None:
        """Drop the values."""

    def add(self, value: Any) -> None:
        """Drop the value."""

    def __hash__(self) -> int:
        return 0


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(file)
        self._read_storage = read_storage
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a global name stands for, or refuse it."""
        if (module, name) in (("collections", "OrderedDict"), ("torch", "Size")):
            return OrderedDict if name == "OrderedDict" else tuple
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _tensor
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return lambda data, *_: data
        if module in ("torch", "torch.storage") and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        plain = module in _BUILTINS and name in _PLAIN_TYPES
        if plain or module.partition(".")[0] in _BOOKKEEPING:
            return type(name.rpartition(".")[2], (_Inert,), {})
        raise ValueError(
            f"the checkpoint names {module}.{name}, which has no place in a file of weights; "
            "refused, nothing of it was run"
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Return a storage as a flat array."""
        match pid:
            case ("storage", np.dtype() as dtype, str() as key, _, int()):
                if key not in self._storages:
                    data = self._read_storage(key)
                    if len(data) % dtype.itemsize:
                        raise ValueError(
                            f"storage {key} has {len(data)} bytes, no multiple of {dtype}"
                        )
                    self._storages[key] = np.frombuffer(data, dtype)
                return self._storages[key]
        raise ValueError(f"unknown kind of storage in the checkpoint: {pid!r:.80}")


def _tensor(storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> np.ndarray:
    if not isinstance(storage, np.ndarray):
        raise ValueError("a tensor of the checkpoint has no storage that could be read")
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(
            f"a tensor of the checkpoint has impossible shape {shape}, stride {stride}"
        )
    if np.prod(shape, dtype=object) > storage.size:
        raise ValueError(f"a tensor of shape {tuple(shape)} is larger than its storage")
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride))
    if 0 not in shape and last >= storage.size:
        raise ValueError(f"a tensor of the checkpoint reaches element {last} of {storage.size}")
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [s * storage.itemsize for s in stride], writeable=False
    )
    return view.copy()


def read_torch_archive(path: str | Path) -> Any:
    """Return the object a ``torch.save`` zip archive holds, tensors as NumPy arrays.

    Raises:
        ValueError: not such an archive, damaged, or it names anything beyond weights.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            index = [n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"]
            if len(index) != 1:
                raise ValueError(f"{path} is a zip file without weights of PyTorch (no data.pkl)")
            root = index[0].rpartition("/")[0]
            root = root + "/" if root else ""
            if f"{root}byteorder" in archive.namelist():
                order = archive.read(f"{root}byteorder").strip()
                if order != b"little":
                    raise ValueError(f"{path} has byte order {order!r}, expected little")
            file = io.BytesIO(archive.read(index[0]))
            return _Unpickler(file, lambda key: archive.read(f"{root}data/{key}")).load()
    except zipfile.BadZipFile:
        raise ValueError(
            f"{path} is no zip archive of PyTorch (those from before 1.6 must be saved anew)"
        ) from None
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise ValueError(f"{path} is damaged or no checkpoint: {type(e).__name__}: {e}") from None
