"""What all published weights have in common: arrays by name, checked against those a model expects,
and hashed.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.fingerprints import sha256_of_arrays

StateDict = Mapping[str, Any]
Path = tuple[str | int, ...]
Arrays = dict[Path, np.ndarray]


def check_names(state_dict: StateDict, expected: Collection[str], fault: str) -> None:
    """Raises a UserError that opens with `fault` and names the first array missing and the first
    one too many.
    """
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected]
    if missing or unexpected:
        parts = [
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise UserError(f"{fault}: arrays {', '.join(parts)}")


def checked_array(name: str, value: Any, *shapes: tuple[int, ...]) -> np.ndarray:
    """The array as float32, once it is one of these shapes and of finite numbers, in whatever
    floating-point dtype.

    Raises:
      UserError: naming the array, for another shape, for integers, or for NaN and infinite values.
    """
    array = np.asarray(value)
    if array.shape not in shapes:
        raise UserError(f"{name} has shape {array.shape}, expected {' or '.join(map(str, shapes))}")
    # NumPy has no bfloat16 of its own: the one we have counts as neither.
    if array.dtype.kind in "biuOSUc":
        raise UserError(
            f"{name} is of dtype {array.dtype}, expected floating point (are the weights "
            f"quantized?)"
        )
    # Where float64 doesn't fit, the check below says so.
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        bad = np.count_nonzero(~np.isfinite(array))
        raise UserError(
            f"{name} has {bad:,} values NaN or infinite of {array.size:,}, expected none: the "
            "training that wrote the weights diverged, or the file is damaged"
        )
    return array


def sha256_of(arrays: Arrays, head: str = "") -> str:
    """The hash of `head`, then of the arrays as float32 in the order of their names, each after its
    name and shape.
    """
    named = {".".join(map(str, path)): array for path, array in arrays.items()}
    return sha256_of_arrays(sorted(named.items()), head)
