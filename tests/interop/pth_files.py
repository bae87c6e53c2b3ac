"""Files as torch.save writes them, made without torch."""

import collections
import io
import pathlib
import pickle
import zipfile

import numpy as np

from uvit_jax.interop.torch_pickle import DTYPES

_STORAGES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class Named:
    """Pickles as a call of a function that need not exist here."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class TorchPickler(pickle._Pickler):
    """Writes what torch.save writes, with torch's names as plain text, without torch."""

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return (
                "storage",
                Named("torch", _STORAGES[obj.array.dtype]),
                obj.key,
                "cpu",
                obj.array.size,
            )
        return None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            if obj.arguments:
                self.save(obj.arguments)
                self.write(pickle.REDUCE)
            return None
        return super().save(obj, save_persistent_id)


def write_weights(path: pathlib.Path, weights: dict[str, np.ndarray]) -> pathlib.Path:
    """A state dict's `.pth`: by torch itself where it is installed, else the same zip by hand."""
    try:
        import torch
    except ImportError:
        return write_pth(path, *as_torch(weights))
    torch.save(
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()},
        path,
    )
    return path


def write_pth(path, tree, storages=(), truncate=0):
    data = io.BytesIO()
    TorchPickler(data, protocol=2).dump(tree)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", data.getvalue())
        archive.writestr("weights/byteorder", "little")
        for storage in storages:
            raw = storage.array.tobytes()
            archive.writestr(f"weights/data/{storage.key}", raw[: len(raw) - truncate])
    return path


def tensor(storage, shape, stride, offset=0):
    hooks = collections.OrderedDict()
    return Named("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, stride, False, hooks)


def as_torch(weights):
    """The tree that torch.save pickles for a state dict, and its storages."""
    storages = {
        name: Storage(str(i), np.ascontiguousarray(array))
        for i, (name, array) in enumerate(weights.items())
    }
    tree = {
        name: tensor(
            storage,
            storage.array.shape,
            tuple(step // storage.array.itemsize for step in storage.array.strides),
        )
        for name, storage in storages.items()
    }
    return tree, list(storages.values())


def write_tree(path: pathlib.Path, tree) -> pathlib.Path:
    """A `.pth` of nested dictionaries; arrays become tensors, all else is pickled as it is."""
    storages = []

    def converted(value):
        if isinstance(value, dict):
            return {name: converted(inner) for name, inner in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        value = np.ascontiguousarray(value).reshape(value.shape)
        storages.append(Storage(str(len(storages)), value))
        return tensor(
            storages[-1], value.shape, tuple(step // value.itemsize for step in value.strides)
        )

    return write_pth(path, converted(tree), storages)
