"""Writes ``torch.save`` archives by hand, since PyTorch is not installed."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

_STORAGE = {"f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage", "f2": "HalfStorage"}


class Tensor:
    """An array that is pickled the way PyTorch pickles a tensor."""

    def __init__(self, array: np.ndarray, strides: tuple[int, ...] | None = None) -> None:
        self.array, self.strides = array, strides


def _torch_names() -> dict[str, Any]:
    """Stand-ins that pickle under PyTorch's names."""

    def function(module: str, name: str) -> Any:
        def call(*_: Any) -> None:
            raise AssertionError("only the name is written")

        call.__module__, call.__qualname__, call.__name__ = module, name, name
        return call

    names = {"_rebuild_tensor_v2": function("torch._utils", "_rebuild_tensor_v2")}
    for storage in (*_STORAGE.values(), "BFloat16Storage"):
        names[storage] = type(storage, (), {"__module__": "torch"})
    return names


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, names: dict[str, Any]) -> None:
        super().__init__(file, protocol=2)
        self.names, self.storages = names, []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        self.storages.append(obj.data)
        kind = self.names[obj.kind]
        return ("storage", kind, str(len(self.storages) - 1), "cpu", obj.size)

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        array = obj.array
        kind = _STORAGE.get(array.dtype.str[1:], "BFloat16Storage")
        strides = obj.strides
        if strides is None:
            strides = tuple(s // array.itemsize for s in array.strides)
        base = array.tobytes("A" if obj.strides is None else "C")
        storage = _Storage(base, kind, array.size)
        args = (storage, 0, tuple(array.shape), strides, False, OrderedDict())
        return self.names["_rebuild_tensor_v2"], args


class _Storage:
    def __init__(self, data: bytes, kind: str, size: int) -> None:
        self.data, self.kind, self.size = data, kind, size


def write_archive(path: Path, content: Any, root: str = "archive") -> Path:
    """Write what ``torch.save(content, path)`` would write."""
    names = _torch_names()
    modules = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    for name, value in names.items():
        setattr(modules["torch._utils" if name.startswith("_") else "torch"], name, value)
    hidden = {k: sys.modules.get(k) for k in modules}
    sys.modules.update(modules)
    try:
        file = io.BytesIO()
        pickler = _Pickler(file, names)
        pickler.dump(content)
    finally:
        for name, module in hidden.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    write_raw(path, file.getvalue(), pickler.storages, root)
    return path


def write_raw(path: Path, data: bytes, storages: list[bytes], root: str = "archive") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", data)
        archive.writestr(f"{root}/byteorder", "little")
        for i, storage in enumerate(storages):
            archive.writestr(f"{root}/data/{i}", storage)
        archive.writestr(f"{root}/version", "3\n")
    return path
