"""What all published weights have in common: arrays by name, checked against the names a model expects, and hashed."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from uvit_jax.errors import UserError

StateDict = Mapping[str, Any]
Path = tuple[str | int, ...]
Arrays = dict[Path, np.ndarray]


def check_names(state_dict: StateDict, expected: Collection[str], fault: str) -> None:
    """Raises a UserError that opens with `fault` and names the first array missing and the first one too many."""
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected]
    if missing or unexpected:
        parts = [
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise UserError(f"{fault}: arrays {', '.join(parts)}")


def sha256_of(arrays: Arrays, head: str = "") -> str:
    """The hash of `head`, then of the arrays as float32 in the order of their names, each after its name and shape."""
    digest = hashlib.sha256(head.encode())
    for name, array in sorted((".".join(map(str, path)), array) for path, array in arrays.items()):
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array, "<f4").data)
    return digest.hexdigest()
