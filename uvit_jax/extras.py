"""Modules of optional dependencies, and the command that installs them."""

import importlib
import types

from uvit_jax.errors import UserError


def install_command(extra: str) -> str:
    """The one command that installs an extra of pyproject.toml."""
    return f"pip install 'uvit-jax[{extra}]'"


def import_extra(module: str, extra: str, what: str) -> types.ModuleType:
    """Imports a module that an extra installs; call it where the module is first needed.

    Args:
      module: its name, "tensorflow_datasets" or "google.cloud.storage".
      extra: the extra of pyproject.toml that installs it, "tfds".
      what: what asked for it, as the clause that opens the sentence: "source is 'tfds:cifar10'".

    Raises:
      UserError: the module, or one that it imports, isn't there or can't be loaded.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what}, which needs {module} ({error}): {install_command(extra)}"
        ) from None
