"""Reads the tensors of a file that torch.save wrote before version 1.6, executing nothing from it.

Such a file is pickles one after another (a magic number, a version, facts on the machine, the structure whose tensors
refer to storages, the storages' keys), then for each key a count and the raw bytes. The published Inception-v3 of FID
is older than the zip files that `torch_file` reads.
"""

import collections
import dataclasses
import pathlib
import pickle
from typing import Any, BinaryIO

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.interop.torch_file import DTYPES, rebuild_tensor

_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def is_legacy(path: pathlib.Path) -> bool:
    """Whether a file begins as torch.save's did before version 1.6."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_legacy_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name; those of its `state_dict` entry if it has one.

    Raises:
      UserError: for a file that is cut short or damaged, names anything but tensors and dictionaries, or holds no
        state dict.
    """
    try:
        with path.open("rb") as file:
            saved, storages = _read(file, path)
        if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
            saved = saved["state_dict"]
        tensors = saved.items() if isinstance(saved, dict) else ()
        arrays = {name: value.array(storages) for name, value in tensors if isinstance(value, _Tensor)}
    except UserError:
        raise
    # What damage to a pickle raises is any of these, and more.
    except Exception as error:
        raise UserError(f"{path} is damaged ({error!r}), expected a file that torch.save wrote") from None
    if not arrays:
        raise UserError(f"{path} holds {type(saved).__name__}, expected a state dict: names and their tensors")
    return arrays


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A storage that is referred to before its bytes are read."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage whose bytes are still to come."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        return rebuild_tensor(storages[self.storage.key], self.offset, self.shape, self.stride)


def _read(file: BinaryIO, path: pathlib.Path) -> tuple[Any, dict[str, np.ndarray]]:
    """What was saved, with `_Tensor`s in it, and the storages they refer to by key."""
    unpicklers = [_Unpickler(file, path) for _ in range(5)]
    _, _, machine, saved, keys = (unpickler.load() for unpickler in unpicklers)
    if machine.get("little_endian") is not True:
        raise UserError(f"{path} was written on a big-endian machine, expected little-endian bytes")
    declared = unpicklers[3].storages
    storages = {}
    for key in keys:
        dtype, count = declared[key].dtype, declared[key].count
        data = file.read(8)
        if int.from_bytes(data, "little") != count:
            raise ValueError(f"a count of {data!r} before storage {key} of {count}")
        data = file.read(count * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise UserError(f"{path}: storage {key} has {len(data)} bytes, expected {count} {dtype}: is it cut short?")
        storages[key] = np.frombuffer(data, dtype)
    return saved, storages


class _Unpickler(pickle.Unpickler):
    """An unpickler that can call nothing but this file's own constructors."""

    def __init__(self, file: BinaryIO, path: pathlib.Path):
        super().__init__(file)
        self._path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _tensor if name == "_rebuild_tensor_v2" else _parameter
        if module == "torch" and name in DTYPES:
            return np.dtype(DTYPES[name])
        raise UserError(f"{self._path} asks for {module}.{name}, expected tensors alone: it was not opened further")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, count, view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
            raise UserError(f"{self._path} refers to {kind!r} of {dtype!r}, expected a whole storage")
        return self.storages.setdefault(key, _Storage(key, dtype, count))


def _tensor(storage: _Storage, offset: int, shape: tuple, stride: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, stride)


def _parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor
