"""The devices that JAX computes on, and in one sentence why it can't open those it was asked for."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping

import jax

from uvit_jax.errors import UserError, nearest
from uvit_jax.parallel.gpu_memory import PLUGINS
from uvit_jax.parallel.launchers import tpu_chips

_PLATFORMS = ("cpu", "cuda", "gpu", "tpu")
_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
_WITHOUT = "or set JAX_PLATFORMS=cpu"


def open_devices(environ: Mapping[str, str]) -> list[jax.Device]:
    """All devices of the run, opened.

    Raises:
      UserError: where JAX can't open the platform that JAX_PLATFORMS names, or one that it found by
        itself.
    """
    variable, wanted = _asked(environ)
    # Told before libtpu is loaded, which prints lines of its own where it finds none.
    if "tpu" in _names(wanted) and not tpu_chips() and "JAX_FORCE_TPU_INIT" not in environ:
        raise UserError(
            f"{variable} is {wanted!r}, but no TPU is in sight (neither /dev/accel0 nor "
            f"/dev/vfio/0 is there): expected a TPU machine, {_WITHOUT}"
        )
    with _collected(logging.getLogger("jax._src.xla_bridge")) as logged:
        try:
            return jax.devices()
        # JAX asserts that it found any: for JAX_PLATFORMS=cuda where no NVIDIA GPU is in sight
        # there is none.
        except (RuntimeError, AssertionError) as error:
            told = str(error)
            logged_by_plugins, logged[:] = " ".join(logged), []
    raise UserError(why_not(environ, told, logged_by_plugins))


def why_not(environ: Mapping[str, str], told: str, logged: str = "") -> str:
    """The sentence for the devices that can't be opened.

    told: JAX's error; logged: what JAX logged of its plugins before.
    """
    variable, wanted = _asked(environ)
    told = re.sub(r" \((set JAX_PLATFORMS|you may need to uninstall).*", "", " ".join(told.split()))
    found = re.fullmatch(r"Unable to initialize backend '([^']*)': (.*)", told)
    platform, reason = (found[1], found[2]) if found else (wanted, told)
    asked = f"{variable} is {wanted!r}, but " if variable else ""
    if holder := re.search(r"already in use by process with pid (\d+)", told):
        return (
            f"the TPU is in use by process {holder[1]}: end that process or wait for its end, "
            f"{_WITHOUT}"
        )
    if "libtpu.so" in reason:
        return f"{asked}TPU's library, libtpu, can't be loaded: pip install 'jax[tpu]', {_WITHOUT}"
    if "known backends" in reason or "Unknown backend:" in reason:
        return _unknown(variable, wanted, platform, logged)
    if not reason:
        return (
            f"{asked}no NVIDIA GPU is in sight (neither /dev/nvidia0 nor /dev/nvidiactl is there): "
            f"expected a machine or container with one, {_WITHOUT}"
        )
    check = " (does nvidia-smi see the GPUs?)" if platform in ("cuda", "gpu") else ""
    return (
        f"{asked}the devices of platform {platform!r} can't be opened, {reason}{check}: mend "
        f"that, {_WITHOUT}"
    )


def _unknown(variable: str, wanted: str, platform: str, logged: str) -> str:
    """The sentence for a platform without a plugin, or for a word that is none."""
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
    """The variable that names platforms, and its value; both empty where there is none."""
    variable = next((name for name in _VARIABLES if environ.get(name)), "")
    return variable, environ.get(variable, "")


def _names(wanted: str) -> list[str]:
    return [name.strip() for name in wanted.split(",")]


@contextlib.contextmanager
def _collected(logger: logging.Logger) -> Iterator[list[str]]:
    """Holds what is logged, each record as one line without its traceback; what is left in the list
    is logged after.
    """
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
