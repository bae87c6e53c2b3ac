"""The package array_record, imported where shards are opened: it has no build for Windows."""

import importlib
import types

from uvit_jax.errors import UserError


def array_record() -> types.ModuleType:
    """The module with ArrayRecordReader and ArrayRecordWriter.

    Raises:
      UserError: it can't be imported.
    """
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        raise UserError(
            f"prepared data is stored as ArrayRecord, whose package can't be loaded ({error}): "
            "expected Linux, macOS, or WSL on Windows"
        ) from None
