"""What a config file makes, and every fault of the file in one sentence."""

import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
from collections.abc import Iterable
from typing import Any

import ml_collections

from uvit_jax.errors import UserError, nearest


def read_config(name: str) -> ml_collections.ConfigDict:
    """The config of "configs/x.py" or "configs/x.py:variant".

    Raises:
      UserError: naming the file and its fault: not there, not Python, no `get_config`, or one that fails or returns
        no config.
    """
    path, _, variant = name.partition(":")
    _check_path(pathlib.Path(path))
    try:
        get_config = getattr(_execute(path), "get_config", None)
        if not callable(get_config):
            raise UserError(f"config file {path} has no get_config(), expected a function that returns the config")
        asked = [variant] if variant else []
        _check_variant(path, get_config, asked)
        config = get_config(*asked)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config file {path} fails{_where(path, error)}: {_what(error)}") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"config file {path}: get_config() returns {'None' if config is None else f'a {type(config).__name__}'}, "
            "expected a ConfigDict as default_config() makes"
        )
    return config


def check_known(where: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Raises a UserError naming the first of the fields found that is not known, and the one that may be meant."""
    names = sorted(known)
    for name in found:
        if name not in names:
            close = nearest(name, names)
            hint = f"did you mean {close!r}?" if close else f"expected one of {', '.join(names)}"
            raise UserError(f"{where} has no field {name!r}, {hint}")


def check_flags(config: ml_collections.ConfigDict, fields: Iterable[str]) -> None:
    """Raises a UserError for the first dotted name that is no field of the config, as "model.dept"."""
    for field in fields:
        where, within = "config", config
        for name in field.split("."):
            if not isinstance(within, ml_collections.ConfigDict):
                raise UserError(f"config.{field} is no field, expected --{where}={within!r} or another value")
            check_known(where, [name], within)
            where, within = f"{where}.{name}", within[name]


def _check_path(path: pathlib.Path) -> None:
    run = path.parent if path.name == "config.json" else path
    if path.exists() and (run / "config.json").exists():
        raise UserError(f"{path} is what a run left, no config file: expected --workdir {run} in place of --config")
    if not path.is_file():
        raise UserError(f"there is no config file {path}, expected a path as configs/digits.py")
    if path.suffix != ".py":
        raise UserError(f"{path} is no config file, expected one of Python as configs/digits.py")


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
        expected = f"--config {path} alone" if asked else f"--config {path}:VARIANT"
        raise UserError(f"that config has {'no variants' if asked else 'variants only'}, expected {expected}") from None


def _where(path: str, error: Exception) -> str:
    """The line of the file that an error comes from."""
    file = os.path.abspath(path)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    return f" in line {lines[-1]}" if lines and lines[-1] else ""


def _what(error: Exception) -> str:
    told = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(f"{type(error).__name__}: {told}".split())
