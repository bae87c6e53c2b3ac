"""What all published weights have in common: arrays by name, checked against the names that a model expects."""

from collections.abc import Collection, Mapping
from typing import Any

from uvit_jax.errors import UserError

StateDict = Mapping[str, Any]


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
