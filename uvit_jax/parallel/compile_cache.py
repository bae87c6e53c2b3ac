"""Compiled programs kept on disk, so that the same command starts within seconds the second time."""

import os
import pathlib
from collections.abc import Mapping

import jax


def keep_compiled_programs(environ: Mapping[str, str]) -> pathlib.Path | None:
    """Lets JAX keep what it compiles for accelerators in `XDG_CACHE_HOME`/uvit_jax/xla (default
    ~/.cache); the folder.

    None, and nothing is changed, on a CPU (which compiles in seconds, and whose programs are for
    one kind of it alone), and where JAX_COMPILATION_CACHE_DIR or JAX's own config names a folder
    already. JAX_ENABLE_COMPILATION_CACHE=false switches it off. Touches the devices.
    """
    if jax.default_backend() == "cpu" or jax.config.values["jax_compilation_cache_dir"]:
        return None
    home = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = pathlib.Path(home, "uvit_jax", "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
