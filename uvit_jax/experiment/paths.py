"""Paths of the command line and of configs: the fields that are paths, and their checks."""

import dataclasses
import os
import re
from typing import Any, TypeVar

from uvit_jax.errors import UserError

# The experiment's class, whose module imports this one.
Config = TypeVar("Config", bound=Any)

# Every field that a file or a folder may be named in; some take other names, too (a hub's,
# "tfds:<name>", "hf:<name>", "digits").
PATH_FIELDS = (
    "init_from",
    "autoencoder.name",
    "text_encoder.name",
    "text_encoder.tokenizer",
    "data.source",
    "sample.prompts",
    "sample.out",
    "evaluate.samples",
    "evaluate.reference",
    "evaluate.inception",
    "evaluate.clip",
    "evaluate.captions",
    "evaluate.out",
    "prepare.source",
    "prepare.data_dir",
    "prepare.out",
)
# What may stand before the path of an image source.
_SOURCE = re.compile(r"(?:hf|wds):")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:/")


def local_path(field: str, value: str) -> str:
    """Expands a leading ~, which a shell leaves as it is in `--workdir=~/runs`.

    The ~ of "hf:~/images" is expanded, too.

    Raises:
      UserError: for a URL, which would be taken for a folder "gs:"; for a name of blanks alone, or
        one that is not UTF-8, which no report could hold; for the ~ of an unknown user.
    """
    source = _SOURCE.match(value)
    if source and not value[source.end() :].startswith("//"):
        return source[0] + local_path(field, value[source.end() :])
    if _URL.match(value):
        raise UserError(
            f"{field} is {value!r}, which is a URL, expected a path: mount the bucket as a folder "
            "(with gcsfuse or the like, see docs/pods.md) or download the file first"
        )
    if value and not value.strip():
        raise UserError(f"{field} is {value!r}, expected a path, or nothing for the default")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{field} is {value!r}, which is not UTF-8, expected a path in UTF-8"
        ) from None
    if not value.startswith("~"):
        return value
    expanded = os.path.expanduser(value)
    if expanded.startswith("~"):
        raise UserError(
            f"{field} is {value!r}, expected a path: there is no user of that name (a file's is "
            f"./~...)"
        )
    return expanded


def with_local_paths(experiment: Config) -> Config:
    """Returns the experiment with every path checked and expanded by `local_path`.

    Raises:
      UserError: for the first field that is not a path.
    """
    for field in PATH_FIELDS:
        section, _, name = field.rpartition(".")
        owner = getattr(experiment, section) if section else experiment
        value = getattr(owner, name)
        if field == "sample.prompts" and not value.endswith(".txt"):
            continue  # texts
        path = local_path(f"config.{field}", value)
        if path != value:
            changes: dict[str, Any] = {name: path}
            if section:
                changes = {section: dataclasses.replace(owner, **changes)}
            experiment = dataclasses.replace(experiment, **changes)
    return experiment
