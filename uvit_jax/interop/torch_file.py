"""Reads the tensors of a file of torch.save, without torch, executing nothing in it.

Such a file is a zip: `<name>/data.pkl`, a pickle of the structure whose tensors refer to storages,
and `<name>/data/<key>`, the raw bytes of each storage.
"""

import io
import pathlib
import zipfile

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.interop.torch_pickle import Choose, Storage, TensorUnpickler, all_of, arrays_of


def read_tensors(path: pathlib.Path, choose: Choose = all_of) -> dict[str, np.ndarray]:
    """The tensors of a file saved by torch (1.6 or newer), by name.

    choose: picks arrays by name; the others' bytes are not read.

    Raises:
      UserError: for a file that is not such a zip, is cut short, names anything but tensors and
        dictionaries, or holds no state dict.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive, path)
            saved = TensorUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")), path).load()

            def read(storage: Storage) -> bytes:
                return archive.read(f"{root}data/{storage.key}")

            return arrays_of(saved, path, choose, read)
    except UserError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(
            f"{path} can't be read ({error}), expected a file that torch.save (1.6 or newer) "
            "wrote: download or copy it again"
        ) from None
    # A damaged pickle can raise nearly anything, MemoryError too.
    except Exception as error:
        fault = str(error) or type(error).__name__
        raise UserError(
            f"{path} is damaged ({fault}), expected a file that torch.save wrote"
        ) from None


def _root(archive: zipfile.ZipFile, path: pathlib.Path) -> str:
    """The folder in a zip that holds everything."""
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(
            f"{path} has {len(pickles)} entries data.pkl, expected one, as torch.save writes"
        )
    root = pickles[0].removesuffix("data.pkl")
    byteorder = f"{root}byteorder"
    if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
        raise UserError(f"{path} was written on a big-endian machine, expected little-endian bytes")
    return root
