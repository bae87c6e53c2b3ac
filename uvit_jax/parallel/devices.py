"""Opening of the devices that JAX computes on, with one sentence where that fails."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping

import jax

from uvit_jax.errors import UserError, nearest
from uvit_jax.extras import install_command
from uvit_jax.parallel.gpu_memory import PLUGINS
from uvit_jax.parallel.launchers import tpu_chips

_PLATFORMS = ("cpu", "cuda", "gpu", "tpu")
_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
_WITHOUT = "or set JAX_PLATFORMS=cpu"


def open_devices(environ: Mapping[str, str]) -> list[jax.Device]:
    """Opens and returns all devices of the run.

    Raises:
      UserError: if JAX can't open the platform that JAX_PLATFORMS names, or one that it found.
    """
    variable, wanted = _asked(environ)
    # Checked before libtpu is loaded, which prints lines of its own where it finds no TPU.
    if "tpu" in _names(wanted) and not tpu_chips() and "JAX_FORCE_TPU_INIT" not in environ:
        raise UserError(
            f"{variable} is {wanted!r}, but no TPU is in sight (neither /dev/accel0 nor "
            f"/dev/vfio/0 is there): expected a TPU machine, {_WITHOUT}"
        )
    # A private logger's name: the only place where JAX says why a plugin failed.
    with _collected(logging.getLogger("jax._src.xla_bridge")) as logged:
        try:
            return jax.devices()
        # JAX asserts that it found a device: JAX_PLATFORMS=cuda without a visible GPU fails that.
        except (RuntimeError, AssertionError) as error:
            reason = str(error)
            logged_by_plugins, logged[:] = " ".join(logged), []
    raise UserError(why_not(environ, reason, logged_by_plugins))


def why_not(environ: Mapping[str, str], error: str, logged: str = "") -> str:
    """Returns the sentence for devices that can't be opened.

    Args:
      error: JAX's message.
      logged: lines that JAX logged about its plugins before.
    """
    variable, wanted = _asked(environ)
    error = re.sub(
        r" \((set JAX_PLATFORMS|you may need to uninstall).*", "", " ".join(error.split())
    )
    found = re.fullmatch(r"Unable to initialize backend '([^']*)': (.*)", error)
    platform, reason = (found[1], found[2]) if found else (wanted, error)
    asked = f"{variable} is {wanted!r}, but " if variable else ""
    if holder := re.search(r"already in use by process with pid (\d+)", error):
        return (
            f"the TPU is in use by process {holder[1]}: end that process or wait for its end, "
            + _WITHOUT
        )
    if "libtpu.so" in reason:
        return (
            f"{asked}TPU's library, libtpu, can't be loaded: {install_command('tpu')}, {_WITHOUT}"
        )
    if "known backends" in reason or "Unknown backend:" in reason:
        return _unknown(variable, wanted, platform, logged)
    if not reason:
        return (
            f"{asked}no NVIDIA GPU is in sight (neither /dev/nvidia0 nor /dev/nvidiactl is there): "
            f"expected a machine or container with one, {_WITHOUT}"
        )
    check = " (does nvidia-smi see the GPUs?)" if platform in ("cuda", "gpu") else ""
    return (
        f"{asked}the devices of platform {platform!r} can't be opened, {reason}{check}: mend that, "
        + _WITHOUT
    )


def _unknown(variable: str, wanted: str, platform: str, logged: str) -> str:
    """Returns the sentence for a platform without a plugin, or for a word that names none."""
    names = _names(wanted)
    if {"cuda", "gpu"} & {*names, platform}:
        plugin = next((name for name in PLUGINS if importlib.util.find_spec(name)), None)
        fault = "is not installed"
        if plugin:
            versions = [f"{name} {importlib.metadata.version(name)}" for name in (plugin, "jaxlib")]
            fault = f"can't be used, {versions[0]} beside {versions[1]}" + (
                f" ({logged[:200]})" if logged else ""
            )
        return (
            f"{variable} is {wanted!r}, but JAX's plugin for NVIDIA GPUs {fault}: pip install -U "
            f"'jax[cuda13]', {_WITHOUT}"
        )
    odd = next((name for name in names if name not in _PLATFORMS), platform)
    close = nearest(odd.lower(), _PLATFORMS)
    hint = (
        f"did you mean {close!r}?"
        if close
        else "expected some of cpu, cuda, tpu, or unset for what there is"
    )
    return f"{variable} is {wanted!r}, of which JAX knows no platform {odd!r}, {hint}"


def _asked(environ: Mapping[str, str]) -> tuple[str, str]:
    """Returns the variable that names platforms, and its value; "" for both without one."""
    variable = next((name for name in _VARIABLES if environ.get(name)), "")
    return variable, environ.get(variable, "")


def _names(wanted: str) -> list[str]:
    return [name.strip() for name in wanted.split(",")]


@contextlib.contextmanager
def _collected(logger: logging.Logger) -> Iterator[list[str]]:
    """Holds log records back, as lines without tracebacks; logs at the end those still listed."""
    lines: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cause = f": {record.exc_info[1]}" if record.exc_info else ""
            lines.append(" ".join(f"{record.getMessage()}{cause}".split()))

    handler, propagate = Collecting(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        for line in lines:
            logger.warning(line)
