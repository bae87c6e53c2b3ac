"""Reads an object array that `np.save` pickled, without executing anything from the file.

A pickle may name any Python function to be called; this reader has substitutes for NumPy's own
reconstruction functions, which trust the shapes and types they are given, and refuses every other
name.
"""

import io
import math
import pathlib
from typing import Any

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.safe_pickle import AllowListUnpickler

_NUMBERS = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"})


def read_object_array(path: pathlib.Path) -> list[np.ndarray]:
    """The elements of a one-dimensional object array, as arrays of numbers (a number as `[]`).

    Raises:
      UserError: for a file that can't be read, is not such an array, is damaged or names anything
        but NumPy's arrays.
    """
    try:
        file = io.BytesIO(path.read_bytes())
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        if not dtype.hasobject:
            raise UserError(f"{path} holds {dtype} of shape {shape}, expected an array of objects")
        array = _unpickler(file, path).load()
        if (
            not isinstance(array, _Array)
            or not isinstance(array.values, list)
            or shape != (len(array.values),)
        ):
            raise ValueError(f"no list of {shape} objects in it")
        return [_value(value) for value in array.values]
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror}), expected an array of objects"
        ) from None
    except Exception as error:  # Damaged bytes make the unpickler raise nearly anything.
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{path} is damaged ({fault}), expected an array of objects that np.save wrote"
        ) from None


class _Dtype:
    """A substitute for numpy.dtype: a type's code, and by its state the order of the bytes."""

    def __init__(self, code: str, *_: Any):
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype:
        if self.code not in _NUMBERS or self.order not in ("<", ">", "|"):
            raise ValueError(f"an array of {self.order}{self.code}")
        return np.dtype(self.order + self.code)


class _Array:
    """A substitute for numpy.ndarray; `values` are bytes, or a list of objects."""

    shape: tuple[int, ...]
    type: _Dtype
    is_fortran: bool
    values: bytes | list

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.type, self.is_fortran, self.values = state

    def array(self) -> np.ndarray:
        dtype = self.type.dtype()
        if not isinstance(self.values, bytes) or math.prod(self.shape) * dtype.itemsize != len(
            self.values
        ):
            raise ValueError(
                f"{len(self.values)} bytes or objects for an array of {dtype} {list(self.shape)}"
            )
        flat = np.frombuffer(self.values, dtype).astype(dtype.newbyteorder("="))
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


def _value(value: Any) -> np.ndarray:
    return value.array() if isinstance(value, _Array) else np.asarray(int(value))


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: bytes) -> _Array:
    scalar = _Array()
    scalar.shape, scalar.type, scalar.is_fortran, scalar.values = (), dtype, False, data
    return scalar


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes, as pickles that please Python 2 write them."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    # NumPy 2 renamed core to _core.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}


def _unpickler(file: io.BytesIO, path: pathlib.Path) -> AllowListUnpickler:
    def refuse(name: str) -> UserError:
        return UserError(
            f"{path} asks for {name}, expected arrays alone: it was not opened further"
        )

    return AllowListUnpickler(file, lambda module, name: _KNOWN.get((module, name)), refuse)
