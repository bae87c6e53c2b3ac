import logging

import jax
import pytest

from tests.jobs.runs import command, run_command
from uvit_jax.errors import UserError
from uvit_jax.parallel import devices
from uvit_jax.parallel.devices import open_devices, why_not

AUTOMATIC = " (set JAX_PLATFORMS='' to automatically choose an available backend)"
SKIP = (
    " (you may need to uninstall the failing plugin package, or set JAX_PLATFORMS=cpu to skip "
    "this backend.)"
)
UNKNOWN = (
    "Unable to initialize backend '{}': Backend '{}' is not in the list of known backends: "
    "['cpu', 'tpu']."
)


@pytest.mark.parametrize(
    ("variables", "error", "sentence"),
    [
        (
            {"JAX_PLATFORMS": "cuda"},
            "",
            "JAX_PLATFORMS is 'cuda', but no NVIDIA GPU is in sight (neither /dev/nvidia0 nor "
            "/dev/nvidiactl is there)"
            ": expected a machine or container with one, or set JAX_PLATFORMS=cpu",
        ),
        (
            {"JAX_PLATFORMS": "cuda"},
            UNKNOWN.format("cuda", "cuda") + AUTOMATIC,
            "JAX_PLATFORMS is 'cuda', but JAX's plugin for NVIDIA GPUs is not installed: pip "
            "install -U 'jax[cuda13]', or set JAX_PLATFORMS=cpu",
        ),
        (
            # JAX takes "gpu" for the last of cuda, rocm and oneapi.
            {"JAX_PLATFORMS": "gpu"},
            UNKNOWN.format("rocm", "rocm") + AUTOMATIC,
            "JAX_PLATFORMS is 'gpu', but JAX's plugin for NVIDIA GPUs is not installed: pip "
            "install -U 'jax[cuda13]', or set JAX_PLATFORMS=cpu",
        ),
        (
            {"JAX_PLATFORMS": "cpu,cdua"},
            UNKNOWN.format("cdua", "cdua") + AUTOMATIC,
            "JAX_PLATFORMS is 'cpu,cdua', of which JAX knows no platform 'cdua', did you mean "
            "'cuda'?",
        ),
        (
            {"JAX_PLATFORMS": "tpu"},
            "Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so: libtpu.so: "
            "cannot open shared object file: No such file or directory" + AUTOMATIC,
            "JAX_PLATFORMS is 'tpu', but TPU's library, libtpu, can't be loaded: pip install "
            "'uvit-jax[tpu]', or set JAX_PLATFORMS=cpu",
        ),
        (
            # On a TPU machine JAX asks for tpu,cpu by itself.
            {},
            "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process "
            "with pid 1234. Not attempting to load libtpu.so in this process." + AUTOMATIC,
            "the TPU is in use by process 1234: end that process or wait for its end, or set "
            "JAX_PLATFORMS=cpu",
        ),
        (
            {},
            "Unable to initialize backend 'cuda': FAILED_PRECONDITION: No visible\nGPU devices."
            + SKIP,
            "the devices of platform 'cuda' can't be opened, FAILED_PRECONDITION: No visible GPU "
            "devices. (does nvidia-smi see the GPUs?): mend that, or set JAX_PLATFORMS=cpu",
        ),
        (
            {"JAX_PLATFORM_NAME": "tpu"},
            "Unknown backend tpu. Available backends are ['cpu']",
            "JAX_PLATFORM_NAME is 'tpu', but the devices of platform 'tpu' can't be opened, "
            "Unknown backend tpu. Available backends are ['cpu']: mend that, or set "
            "JAX_PLATFORMS=cpu",
        ),
    ],
    ids=[
        "no GPU",
        "no plugin",
        "gpu",
        "misspelt",
        "no libtpu",
        "in use",
        "no driver",
        "the older variable",
    ],
)
def test_devices_that_cannot_be_opened_are_one_sentence(variables, error, sentence):
    assert why_not(variables, error) == sentence


@pytest.mark.parametrize("platforms", ["tpu", "cpu, tpu"])
def test_a_machine_without_a_tpu_is_told_before_libtpu_is_loaded(monkeypatch, platforms):
    monkeypatch.setattr(devices, "tpu_chips", lambda: [])
    monkeypatch.setattr(jax, "devices", lambda: pytest.fail("libtpu is loaded"))
    with pytest.raises(
        UserError, match=rf"^JAX_PLATFORMS is '{platforms}', but no TPU is in sight \(neither /dev/"
    ):
        open_devices({"JAX_PLATFORMS": platforms})


def test_a_plugin_of_another_version_is_named_with_what_it_said(monkeypatch):
    monkeypatch.setattr(devices, "PLUGINS", ("jaxtyping",))
    sentence = why_not(
        {"JAX_PLATFORMS": "cuda"}, UNKNOWN.format("cuda", "cuda"), "initialize() failed: too old"
    )
    assert "plugin for NVIDIA GPUs can't be used, jaxtyping " in sentence
    assert (
        f" beside jaxlib {jax.lib.__version__} (initialize() failed: too old): pip install -U"
        in sentence
    )


def test_what_jax_logs_of_devices_that_fail_is_part_of_the_sentence_alone(monkeypatch, caplog):
    logger = logging.getLogger("jax._src.xla_bridge")

    def fail():
        try:
            raise ValueError("the plugin\nis of another version")
        except ValueError:
            logger.exception("Jax plugin configuration error")
        raise RuntimeError(UNKNOWN.format("cuda", "cuda"))

    monkeypatch.setattr(devices, "PLUGINS", ("jaxtyping",))
    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(
        UserError, match=r"\(Jax plugin configuration error: the plugin is of another version\)"
    ):
        open_devices({"JAX_PLATFORMS": "cuda"})
    assert caplog.text == ""


def test_what_jax_logs_of_devices_that_open_is_logged_in_one_line(monkeypatch, caplog):
    logger = logging.getLogger("jax._src.xla_bridge")
    found = jax.devices()
    monkeypatch.setattr(
        jax, "devices", lambda: logger.warning("Falling back\nto %s", "cpu") or found
    )
    assert open_devices({}) == found
    assert caplog.messages == ["Falling back to cpu"]


def test_a_platform_that_is_not_there_ends_a_job_in_one_sentence(tmp_path):
    ended = run_command(command(f"--workdir={tmp_path}"), JAX_PLATFORMS="cpuu")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    assert ended.stderr.startswith("error: JAX_PLATFORMS is 'cpuu', ")
