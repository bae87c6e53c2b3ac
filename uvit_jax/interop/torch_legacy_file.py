"""Reads the tensors of a file that torch.save wrote before version 1.6, executing nothing from it.

Such a file is pickles one after another (a magic number, a version, facts on the machine, the
structure whose tensors refer to storages, the storages' keys), then for each key a count and the
raw bytes. The published Inception-v3 of FID is older than the zip files that `torch_file` reads.
"""

import os
import pathlib
import pickle
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.interop.torch_pickle import Choose, Storage, TensorUnpickler, all_of, arrays_of

_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_COUNT_BYTES = 8


def is_legacy(path: pathlib.Path) -> bool:
    """True if a file begins as torch.save's did before version 1.6."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_legacy_tensors(path: pathlib.Path, choose: Choose = all_of) -> dict[str, np.ndarray]:
    """The tensors of such a file, by name.

    choose: picks arrays by name; the others' bytes are not read.

    Raises:
      UserError: for a file that is cut short or damaged, names anything but tensors and
        dictionaries, or holds no state dict.
    """
    try:
        with path.open("rb") as file:
            unpicklers = [TensorUnpickler(file, path) for _ in range(5)]
            _, _, machine, saved, keys = (unpickler.load() for unpickler in unpicklers)
            if machine.get("little_endian") is not True:
                raise UserError(
                    f"{path} was written on a big-endian machine, expected little-endian bytes"
                )
            places = _places(file, path, [unpicklers[3].storages[key] for key in keys])

            def read(storage: Storage) -> bytes:
                file.seek(places[storage.key])
                return file.read(storage.num_bytes)

            return arrays_of(saved, path, choose, read)
    except UserError:
        raise
    except (EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is damaged or cut short ({error or 'its pickle has no end'}), expected a file "
            "that torch.save wrote: download or copy it again"
        ) from None
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        raise UserError(
            f"{path} is damaged ({error!r}), expected a file that torch.save wrote"
        ) from None


def _places(file: BinaryIO, path: pathlib.Path, storages: Sequence[Storage]) -> dict[str, int]:
    """The offset of each storage's bytes, by its key; `file` is at the first one's count."""
    size = os.fstat(file.fileno()).st_size
    places = {}
    for storage in storages:
        data = file.read(_COUNT_BYTES)
        if len(data) == _COUNT_BYTES and int.from_bytes(data, "little") != storage.count:
            raise ValueError(f"a count of {data!r} before storage {storage.key} of {storage.count}")
        places[storage.key] = file.tell()
        if file.tell() + storage.num_bytes > size:
            raise UserError(
                f"{path}: storage {storage.key} has {size - file.tell()} bytes, expected "
                f"{storage.count} {storage.dtype}: the file is cut short, download or copy it again"
            )
        file.seek(storage.num_bytes, os.SEEK_CUR)
    return places
