"""Names and tensors from the pickle in a file of torch.save, read by an allow-list.

The list holds constructors of this file for tensors and dictionaries, and a placeholder for what
training saves beside them (options, counters); any other name is refused.
"""

import collections
import dataclasses
import functools
import io
import math
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.safe_pickle import AllowListUnpickler

# From the names of a file's arrays to {name in the file: name to return}; the rest is not read.
Choose = Callable[[Collection[str]], Mapping[str, str]]

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
# Names of what training checkpoints hold beside tensors: options, counters, Lightning's objects.
_NOT_TENSORS = re.compile(
    r"argparse\.Namespace|collections\.(defaultdict|Counter)|(__builtin__|builtins)\.(set|frozenset)"
    r"|pathlib\.\w+|datetime\.\w+|_codecs\.encode|typing\.\w+|easydict\.EasyDict|yacs\.config\.\w+"
    r"|numpy\.(dtype|ndarray)|numpy\.(_?core\.)multiarray\.(scalar|_reconstruct)"
    r"|torch\.(Tensor|nn\.parameter\.\w+|Size|device|dtype|b?float\d+|u?int\d+|bool)"
    r"|(pytorch_lightning|lightning|lightning_fabric|omegaconf|ml_collections)\.[\w.]+"
)
_DEPTH = 8  # of nested dictionaries; weights are never deeper


@dataclasses.dataclass(frozen=True)
class Storage:
    """The elements that tensors are views of; their bytes are elsewhere in the file."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def num_bytes(self) -> int:
        """Length in the file."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, data: np.ndarray) -> np.ndarray:
        """Copies the view out of `data`, the elements of its storage."""
        shape, stride, offset = self.shape, self.stride, self.offset
        if len(shape) != len(stride) or min((offset, *shape, *stride)) < 0:
            raise ValueError(f"a tensor of shape {shape} and strides {stride}")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        # An expanded tensor (stride 0) could ask for any memory; a state dict has none.
        count: int = math.prod(shape)
        if count > data.size or (count and last >= data.size):
            raise ValueError(f"a tensor of shape {shape} beyond its storage of {data.size}")
        strides = tuple(step * data.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(data[offset:], shape, strides).copy()


def all_of(names: Collection[str]) -> dict[str, str]:
    """Chooses every array, under its own name."""
    return {name: name for name in names}


def arrays_of(
    saved: Any, path: pathlib.Path, choose: Choose, read: Callable[[Storage], bytes]
) -> dict[str, np.ndarray]:
    """Reads the chosen arrays, by the names that `choose` gives them.

    Args:
      saved: the result of `TensorUnpickler.load`.
      path: the file, named in errors.
      choose: picks arrays by name; a nested dictionary's name is joined with a dot.
      read: returns the bytes of a storage; called only for the chosen arrays.

    Raises:
      UserError: if no tensor has a name, or a storage has another length than the pickle says.
    """

    # Neighbouring tensors may be views of one storage, which is then read once.
    @functools.lru_cache(maxsize=1)
    def elements(storage: Storage) -> np.ndarray:
        data = read(storage)
        if len(data) != storage.num_bytes:
            raise UserError(
                f"{path}: storage {storage.key} has {len(data)} bytes, expected {storage.count} "
                f"{storage.dtype}: the file is cut short or damaged, download or copy it again"
            )
        return np.frombuffer(data, storage.dtype)

    tensors = _named(saved, path)
    return {
        name: tensors[theirs].array(elements(tensors[theirs].storage))
        for theirs, name in choose(tensors).items()
    }


def _named(saved: Any, path: pathlib.Path) -> dict[str, Tensor]:
    """Tensors by name, without the name of a dictionary that holds all of them."""
    found = list(_walk(saved, (), _DEPTH)) if isinstance(saved, dict) else []
    if not found:
        kind, keys = type(saved).__name__, list(saved)[:6] if isinstance(saved, dict) else []
        if "param_groups" in keys:
            kind = "the state of an optimizer"
        having = f" (its keys are {', '.join(map(repr, keys))})" if keys else ""
        raise UserError(
            f"{path} holds {kind}, expected a state dict: names and their tensors{having}"
        )
    alone = len({parents for parents, _, _ in found}) == 1
    return {
        name if alone else ".".join((*parents, name)): tensor for parents, name, tensor in found
    }


def _walk(
    saved: Any, parents: tuple[str, ...], depth: int
) -> Iterator[tuple[tuple[str, ...], str, Tensor]]:
    if isinstance(saved, list | tuple):  # an average's arrays without names
        saved = {
            str(number): value for number, value in enumerate(saved) if isinstance(value, Tensor)
        }
    for name, value in saved.items() if isinstance(saved, dict) and depth else ():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield parents, name, value
        elif isinstance(name, str):  # an optimizer's moments go by numbers
            yield from _walk(value, (*parents, name), depth - 1)


class _Placeholder:
    """An object that is not a tensor: takes what a pickle does to it, and keeps nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """torch.FloatStorage and its like, of which only the dtype matters."""

    dtype: np.dtype


class TensorUnpickler(AllowListUnpickler):
    """Unpickles dictionaries and tensors; the latter as `Tensor`, without their elements.

    Attributes:
      storages: every storage that a tensor refers to, by its key.
    """

    def __init__(self, file: io.BufferedIOBase, path: pathlib.Path):
        super().__init__(file, _constructor, self._refusal)
        self._path = path
        self.storages: dict[str, Storage] = {}

    def _refusal(self, name: str) -> UserError:
        return UserError(
            f"{self._path} asks for {name}, expected tensors alone: it was not opened further and "
            "nothing in it was run; save the state_dict() by itself"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a tensor refers to."""
        kind, storage, key, _device, count, *view = pid
        if kind != "storage" or not isinstance(storage, _StorageType) or view not in ([], [None]):
            raise UserError(f"{self._path} refers to {kind!r}, expected a whole storage")
        if not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise ValueError(f"a storage {key!r} of {count!r} elements")
        return self.storages.setdefault(key, Storage(key, storage.dtype, count))


def _constructor(module: str, name: str) -> Any:
    """The allow-list: the constructor in the place of a name, None for a name to refuse."""
    if module == "torch" and name in DTYPES:
        return _StorageType(np.dtype(DTYPES[name]))
    if (module, name) in _CONSTRUCTORS:
        return _CONSTRUCTORS[module, name]
    return _Placeholder if _NOT_TENSORS.fullmatch(f"{module}.{name}") else None


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    whole = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or not all(isinstance(number, int) for number in whole):
        raise ValueError(f"a tensor of {type(storage).__name__}, offset, shape and strides {whole}")
    return Tensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _derived(rebuild: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    """A tensor of a class derived from torch's, as nn.Buffer is."""
    if rebuild not in (_tensor, _parameter):
        raise ValueError(f"a tensor made by {rebuild!r}")
    return rebuild(*arguments)


_CONSTRUCTORS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _derived,
}
