"""What ends a job that was asked for rightly is told in one sentence that says what to do."""

import errno
import logging
import pathlib

import jax
import pytest
from absl import logging as absl_logging

from tests.jobs.runs import tiny_experiment
from uvit_jax import failures
from uvit_jax.failures import sentence

# As they were seen: the libraries' own words.
NO_SPACE = (
    'RESOURCE_EXHAUSTED: Failed writing: "/run/checkpoints/660.orbax-checkpoint-tmp/d/49": Failed '
    "to write 3225 bytes "
    "to file 8: No space left on device [os_error_code='28']"
)
READ_ONLY = (
    'PERMISSION_DENIED: Error opening "/run/checkpoints/5/d": Read-only file system '
    "[os_error_code='30']"
)
DEVICE = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68719476736 bytes."
TPU = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 39.81G of 15.75G hbm. Exceeded hbm capacity by 24.06G."
)
WORKER = (
    "Worker process was terminated unexpectedly with exit code -9. Search the logs above for "
    "the source."
)


def hidden(error: Exception, by: Exception) -> Exception:
    """An error that came up while another was handled."""
    try:
        try:
            raise error
        except Exception:
            raise by  # noqa: B904
    except Exception as found:
        return found


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
    for step in ("5", "20", "25.orbax-checkpoint-tmp", "30"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
        if step != "30":  # which is being removed
            (tmp_path / "checkpoints" / step / "_CHECKPOINT_METADATA").touch()
    return tmp_path


GOES_ON = "the same command goes on from the newest checkpoint, of step 20"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ValueError(NO_SPACE),
            "/run/checkpoints/660.orbax-checkpoint-tmp/d/49: No space left on device: free some; ",
        ),
        (
            OSError(errno.EDQUOT, "quota", "/run/m.jsonl"),
            "/run/m.jsonl: Disk quota exceeded: free some; ",
        ),
        (
            ValueError(READ_ONLY),
            "/run/checkpoints/5/d can't be read or written any more (Read-only file system); ",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/data/0"),
            "/data/0 is gone, expected it to stay while the ",
        ),
        (
            OSError(errno.ENOTCONN, "Transport endpoint is not connected", "/mnt/b"),
            "/mnt/b can't be read or written any more (Transport endpoint is not connected); ",
        ),
        (
            RuntimeError(WORKER),
            "a process that reads data was ended by SIGKILL, as the system does when memory is "
            "short (config.data.workers is 0): lower config.data.workers or config.data.prefetch "
            "if memory is short, or set workers to 0 to read in threads; ",
        ),
        (
            jax.errors.JaxRuntimeError(DEVICE),
            "the devices are out of memory (allocate 68719476736 bytes): lower "
            "config.train.batch_size (16), or raise config.train.microbatches (1), or set "
            "config.model.remat ('none'); ",
        ),
        (
            jax.errors.JaxRuntimeError(TPU),
            "the devices are out of memory (Used 39.81G of 15.75G hbm): lower "
            "config.train.batch_size (16), or raise",
        ),
        (MemoryError(), "the host is out of memory: lower config.train.batch_size (16), or raise"),
    ],
    ids=["full", "quota", "read-only", "gone", "bucket", "worker", "gpu", "tpu", "host"],
)
def test_what_ends_training_is_told_with_the_step_it_goes_on_from(workdir, error, told):
    later = FileNotFoundError(errno.ENOENT, "No such file or directory", "/run/tensorboard/events")
    closing = RuntimeError("cannot schedule new futures after shutdown")
    is_told_behind_others = getattr(error, "errno", None) != errno.ENOENT
    for found in (error, hidden(error, by=closing)) if is_told_behind_others else (error,):
        text = sentence(found, "train", tiny_experiment(), workdir)
        assert text.startswith(told)
        assert text.endswith(GOES_ON)
        assert "\n" not in text
    if (
        isinstance(error, OSError) and error.errno != errno.ENOENT
    ):  # the first of the system's errors is the one that counts
        assert sentence(hidden(error, by=later), "train", tiny_experiment(), workdir).startswith(
            told
        )


@pytest.mark.parametrize(
    ("job", "fields", "told"),
    [
        ("sample", {}, "lower config.sample.batch_size (16); then run the same command again"),
        (
            "sample",
            {"autoencoder__name": "x"},
            "lower config.sample.batch_size (16) or config.autoencoder.batch_size (16); then",
        ),
        (
            "preflight",
            {},
            "lower config.train.batch_size (16), or raise config.train.microbatches (1), or set",
        ),
        ("evaluate", {}, "lower config.sample.batch_size (16); then"),
        ("evaluate", {"evaluate__samples": "x"}, "set config.evaluate.dtype to 'bfloat16'"),
        (
            "prepare",
            {},
            "lower config.prepare.batch_size (64); the same command goes on after the shards",
        ),
    ],
)
def test_short_memory_names_the_field_that_lowers_it(tmp_path, job, fields, told):
    error = jax.errors.JaxRuntimeError(DEVICE)
    assert told in sentence(error, job, tiny_experiment(**fields), tmp_path)


def test_a_part_of_a_name_is_no_path(workdir):
    error = ValueError("Error writing \"0.count/0\": No space left on device [os_error_code='28']")
    assert sentence(error, "train", tiny_experiment(), workdir).startswith(
        f"{workdir}: No space left on device: free"
    )


def test_a_run_without_a_checkpoint_does_not_promise_one(tmp_path):
    assert sentence(MemoryError(), "train", tiny_experiment(), tmp_path).endswith(
        "; no checkpoint was saved yet"
    )


def test_a_fault_of_the_program_keeps_its_traceback(workdir):
    missing = hidden(
        FileNotFoundError(errno.ENOENT, "No such file", "/etc/x"), by=TypeError("a fault")
    )
    unknown = jax.errors.JaxRuntimeError("INTERNAL: something")
    for error in (ValueError("shapes differ"), KeyError("x"), unknown, missing):
        assert sentence(error, "train", tiny_experiment(), workdir) is None


def test_libraries_log_no_tracebacks_unless_they_are_asked_for(monkeypatch):
    logger, told = logging.Logger("absl"), []
    monkeypatch.setattr(absl_logging, "get_absl_logger", lambda: logger)
    handler = logging.Handler()
    handler.emit = told.append
    logger.addHandler(handler)
    failures.quiet_libraries()

    def log(verbosity: int) -> int:
        monkeypatch.setattr(absl_logging, "get_verbosity", lambda: verbosity)
        logger.error("a save failed", exc_info=ValueError("full"))
        logger.error("a warning worth reading")
        return len(told)

    assert log(absl_logging.WARNING) == 1
    assert log(absl_logging.DEBUG) == 3
