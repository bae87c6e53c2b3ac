"""Cache of compiled programs on disk: the second start of a command compiles nothing."""

import os
import pathlib
from collections.abc import Mapping

import jax


def keep_compiled_programs(environ: Mapping[str, str]) -> pathlib.Path | None:
    """Makes JAX keep programs for accelerators in `XDG_CACHE_HOME`/uvit_jax/xla (default ~/.cache).

    Nothing is changed on a CPU, which compiles in seconds and whose programs run on one CPU model
    only, or where JAX_COMPILATION_CACHE_DIR or JAX's config already names a folder.
    JAX_ENABLE_COMPILATION_CACHE=false switches the cache off. Opens the devices.

    Returns:
      The folder; None where nothing was changed.
    """
    if jax.default_backend() == "cpu" or jax.config.values["jax_compilation_cache_dir"]:
        return None
    home = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = pathlib.Path(home, "uvit_jax", "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
