"""State dicts: arrays by name, checked against the names and shapes of a model, and hashed."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.fingerprints import sha256_of_arrays

StateDict = Mapping[str, Any]
# The names and list positions that lead to an array in a network's state, as ("blocks", 0, "bias").
KeyPath = tuple[str | int, ...]
Arrays = dict[KeyPath, np.ndarray]


def check_names(state_dict: StateDict, expected: Collection[str], fault: str) -> None:
    """Raises a UserError that opens with `fault`, for the first array missing or one too many."""
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
    """The array as float32, if it has one of these shapes and finite floating-point numbers.

    Raises:
      UserError: naming the array, for another shape, for integers, or for NaN and infinite values.
    """
    array = np.asarray(value)
    if array.shape not in shapes:
        raise UserError(f"{name} has shape {array.shape}, expected {' or '.join(map(str, shapes))}")
    # A bfloat16 array, of ml_dtypes, has the kind V.
    if array.dtype.kind in "biuOSUc":
        raise UserError(
            f"{name} is of dtype {array.dtype}, expected floating point (are the weights "
            f"quantized?)"
        )
    # A float64 beyond float32 becomes infinite, which the check below refuses.
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
    """SHA-256 of `head`, then of each array's name, shape and float32 bytes, by name."""
    named = {".".join(map(str, path)): array for path, array in arrays.items()}
    return sha256_of_arrays(sorted(named.items()), head)
