"""Reads the tensors of a file that `torch.save` wrote, without torch and without executing anything from the file.

Such a file is a zip: `<name>/data.pkl`, a pickle of the structure whose tensors refer to storages, and
`<name>/data/<key>`, the raw bytes of each storage. A pickle may name any Python function to be called; this reader
knows the few that rebuild tensors and dictionaries, has its own in their place, and refuses every other name.
"""

import collections
import io
import math
import pathlib
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from uvit_jax.errors import UserError

DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict saved by torch (1.6 or newer) by name; those of its `state_dict` entry if it has one.

    Raises:
      UserError: for a file that is no such zip, is cut short, names anything but tensors and dictionaries, or holds no
        state dict.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            saved = _Unpickler(archive, path).load()
    except UserError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(
            f"{path} can't be read ({error}), expected a file that torch.save (1.6 or newer) wrote"
        ) from None
    # What damage to a pickle raises is nearly anything: where it asks for more bytes than there is memory, too.
    except Exception as error:
        fault = str(error) or type(error).__name__
        raise UserError(f"{path} is damaged ({fault}), expected a file that torch.save wrote") from None
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    tensors = (
        {name: value for name, value in saved.items() if isinstance(value, np.ndarray)}
        if isinstance(saved, dict)
        else {}
    )
    if not tensors:
        raise UserError(f"{path} holds {type(saved).__name__}, expected a state dict: names and their tensors")
    return tensors


class _StorageType:
    """Stands for torch.FloatStorage and its like: only the dtype matters."""

    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)


class _Unpickler(pickle.Unpickler):
    """An unpickler that can call nothing but this file's own constructors."""

    def __init__(self, archive: zipfile.ZipFile, path: pathlib.Path):
        pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{path} has {len(pickles)} entries data.pkl, expected one, as torch.save writes")
        super().__init__(io.BytesIO(archive.read(pickles[0])))
        self._archive, self._path = archive, path
        self._root = pickles[0].removesuffix("data.pkl")
        byteorder = f"{self._root}byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
            raise UserError(f"{path} was written on a big-endian machine, expected little-endian bytes")
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return rebuild_tensor if name == "_rebuild_tensor_v2" else _rebuild_parameter
        if module == "torch" and name in DTYPES:
            return _StorageType(DTYPES[name])
        raise UserError(f"{self._path} asks for {module}.{name}, expected tensors alone: it was not opened further")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _device, count = pid
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise UserError(f"{self._path} refers to {kind!r}, expected a storage")
        if key not in self._storages:
            data = self._archive.read(f"{self._root}data/{key}")
            if len(data) != count * storage.dtype.itemsize:
                raise UserError(f"{self._path}: storage {key} has {len(data)} bytes, expected {count} {storage.dtype}")
            self._storages[key] = np.frombuffer(data, storage.dtype)
        return self._storages[key]


def rebuild_tensor(storage: np.ndarray, offset: int, shape: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """torch's strided view of a storage, as an array of its own; strides count elements."""
    if len(shape) != len(stride) or min((offset, *shape, *stride)) < 0:
        raise ValueError(f"a tensor of shape {shape} and strides {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    # A state dict's tensors repeat no element (stride 0), which could ask for any amount of memory.
    if math.prod(shape) > storage.size or (math.prod(shape) and last >= storage.size):
        raise ValueError(f"a tensor of shape {shape} beyond its storage of {storage.size}")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides).copy()


def _rebuild_parameter(tensor: np.ndarray, *_: Any) -> np.ndarray:
    return tensor
