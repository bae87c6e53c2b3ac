"""Config files: read, and every fault of a file as one sentence."""

import importlib.util
import inspect
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any

import ml_collections

from uvit_jax.errors import UserError, nearest

LOG = logging.getLogger("uvit_jax")

# Fields that have another name today, as "train.lr": "optimizer.lr"; none has been renamed yet.
RENAMED: dict[str, str] = {}
# The repository's configs, which only an installed wheel has here.
_PACKAGED = pathlib.Path(__file__).parents[1] / "configs"


def read_config(name: str) -> ml_collections.ConfigDict:
    """Reads the config of "configs/x.py" or "configs/x.py:variant".

    An installed package brings the repository's configs with it. In a folder without configs/,
    "configs/x.py" is the package's own, and one line of the log says so. No other name leads to
    the package's configs.

    Raises:
      UserError: naming the file and its fault: missing, not Python, without `get_config`, or with
        one that fails or returns something else than a config.
    """
    path, variant = split_name(name)
    path = _packaged(path) or path
    _check_path(pathlib.Path(path))
    try:
        get_config = getattr(_execute(path), "get_config", None)
        if not callable(get_config):
            raise UserError(
                f"config file {path} has no get_config(), expected a function that returns the "
                f"config"
            )
        asked = [variant] if variant else []
        _check_variant(path, get_config, asked)
        config = get_config(*asked)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config file {path} fails{_where(path, error)}: {_what(error)}") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"config file {path}: get_config() returns "
            f"{'None' if config is None else f'a {type(config).__name__}'}, expected a ConfigDict "
            "as default_config() makes"
        )
    return config


def split_name(name: str) -> tuple[str, str]:
    """Splits "configs/x.py:variant" into file and variant; the variant is empty without a colon."""
    found = re.fullmatch(r"(.*?\.py):(.*)", name, re.DOTALL)
    return (found[1], found[2]) if found else (name, "")


def packaged_configs() -> list[str]:
    """Lists the installed package's configs, as "configs/digits.py"; none in a checkout."""
    return sorted(f"configs/{path.name}" for path in _PACKAGED.glob("*.py"))


def own_config(name: str) -> str:
    """Path of a config that came with the package, an installed one or a clone.

    name: of the file, a variant included, as "imagenet256.py:huge".
    """
    folder = _PACKAGED if _PACKAGED.is_dir() else _PACKAGED.parents[1] / "configs"
    return str(folder / name)


def check_known(where: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Raises a UserError naming the first unknown field, and its new name or one that is near.

    where: "config", or a section as "config.train".
    """
    names = sorted(known)
    for name in found:
        if name not in names:
            renamed = RENAMED.get(f"{where}.{name}".removeprefix("config."))
            if renamed:
                raise UserError(f"{where}.{name} is now config.{renamed}")
            close = nearest(name, names)
            hint = f"did you mean {close!r}?" if close else f"expected one of {', '.join(names)}"
            raise UserError(f"{where} has no field {name!r}, {hint}")


def _packaged(path: str) -> str | None:
    """Path of the package's own file of that name, unless there is a folder configs/ here."""
    name = os.path.normpath(path)
    if name not in packaged_configs() or pathlib.Path("configs").exists():
        return None
    found = str(_PACKAGED / pathlib.Path(name).name)
    LOG.info("there is no configs/ here: taking %s, which came with uvit-jax", found)
    return found


def _check_path(path: pathlib.Path) -> None:
    run = path.parent if path.name == "config.json" else path
    if path.exists() and (run / "config.json").exists():
        raise UserError(
            f"{path} is in the workdir of a run, not a config file: expected --workdir {run} in "
            f"place of --config"
        )
    if not path.is_file():
        own = f"configs/{path.name.partition(':')[0].removesuffix('.py')}.py"
        packaged = (
            f"; uvit-jax's own is {_PACKAGED.parent / own}" if own in packaged_configs() else ""
        )
        raise UserError(
            f"there is no config file {path}, expected a path like configs/digits.py{packaged}"
        )
    if path.suffix != ".py":
        raise UserError(
            f"{path} is not a config file, expected a Python file like configs/digits.py"
        )


def _execute(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("config_file", path)
    assert spec is not None  # for .py there is always one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module's names
    spec.loader.exec_module(module)
    return module


def _check_variant(path: str, get_config: Any, asked: list[str]) -> None:
    try:
        inspect.signature(get_config).bind(*asked)
    except TypeError:
        sentence = (
            f"{path} has no variants, expected --config {path}"
            if asked
            else f"{path} needs a variant: --config {path}:VARIANT"
        )
        raise UserError(sentence) from None


def _where(path: str, error: Exception) -> str:
    """Words for the line of the file that raised an error; empty where it is not known."""
    file = os.path.abspath(path)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    return f" in line {lines[-1]}" if lines and lines[-1] else ""


def _what(error: Exception) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(f"{type(error).__name__}: {message}".split())
