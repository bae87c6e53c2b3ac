"""SHA-256 of files, of JSON and of named arrays: what identifies data, weights and requests."""

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Shaped


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """The hash of a file's bytes. Raises OSError if it can't be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """The hash of a value's JSON, the keys of its dicts sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of_arrays(
    arrays: Iterable[tuple[str, Shaped[np.ndarray, "..."]]], head: str = ""
) -> str:
    """The hash of `head`, then of each array as float32 after its name and shape, in this order.

    One array at a time is needed, so a generator may fetch them from devices in turn.
    """
    digest = hashlib.sha256(head.encode())
    for name, array in arrays:
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array, "<f4").data)
    return digest.hexdigest()
