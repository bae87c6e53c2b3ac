"""The command line: reads the config and runs one job."""

import importlib
import logging
import os
import pathlib
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from uvit_jax.command_help import asked_for_help, help_asked
from uvit_jax.command_line import JOBS, separate
from uvit_jax.errors import Failed, Preempted, UserError, check_choice
from uvit_jax.experiment.config_file import read_config, split_name
from uvit_jax.experiment.paths import local_path

if TYPE_CHECKING:
    import ml_collections

    from uvit_jax.experiment.config import Experiment

# Jobs that run nothing on devices, and so join no other hosts.
_SINGLE_HOST = ("preflight",)

_CONFIG = flags.DEFINE_string(
    "config", "", "Config file, as configs/digits.py or configs/imagenet256.py:large."
)
_JOB = flags.DEFINE_string("job", "train", "What to do.")
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder of the run; by default runs/<name of the config>."
)

_INTERRUPTED = "\ninterrupted: the same command continues from the last checkpoint"
_SECONDS_TO_EXIT = 30.0


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the job that the command line names; exits with code 0 only when it is done."""
    argv = list(sys.argv if argv is None else argv)
    # The libraries below log every file they touch; --verbosity=1 shows that.
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("uvit_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        if asked := asked_for_help(argv):
            _print_all(help_asked(asked, argv))
            return
        given, fields = separate(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
    except (UserError, flags.Error) as error:
        _fail(_one_line(error))
    app.run(lambda _: _main(fields), argv=given, flags_parser=_parse)


def _print_all(text: str) -> None:
    """Prints a long text; that its reader, as `| head`, has seen enough is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python's own flush at its end would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(fields: Mapping[str, str | None]) -> None:
    try:
        experiment, workdir = open_experiment(_JOB.value, _CONFIG.value, _WORKDIR.value, fields)
        try:
            _run_job(_JOB.value, experiment, workdir, config=_CONFIG.value)
        except SystemExit as ended:
            _exit_soon(ended.code if isinstance(ended.code, int) else 1)
            raise
    except UserError as error:
        _fail(error)
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        sys.exit(130)


def _exit_soon(code: int) -> None:
    """Starts a timer that ends the process, for a library's thread that hangs after a failure."""
    timer = threading.Timer(_SECONDS_TO_EXIT, os._exit, [code])
    timer.daemon = True
    timer.start()


def open_experiment(
    job: str, name: str, workdir: str, fields: Mapping[str, str | None]
) -> tuple["Experiment", pathlib.Path]:
    """Returns the checked experiment and the workdir that a command line names.

    Args:
      job: one of `JOBS`.
      name: of the config file; empty for the config of the run in the workdir, or for none.
      workdir: folder of the run; empty for one after the config.
      fields: of the config, by their dotted names, as text.

    Raises:
      UserError: for any of them that is wrong, before devices are touched.
    """
    check_choice("--job", job, tuple(JOBS))
    workdir = local_path("--workdir", workdir)
    if name:
        config = read_config(name)
        path, variant = split_name(name)
        default = f"{pathlib.Path(path).stem}-{variant}" if variant else pathlib.Path(path).stem
    else:
        config, default = _config_without_file(job, workdir), job
    # Imported late: a missing config file is reported without importing jax.
    from uvit_jax.experiment.config import resolve, set_fields

    set_fields(config, fields)
    if not name and not _is_saved(workdir):
        _check_needs_no_config(config, workdir)
    return resolve(config), pathlib.Path(workdir or pathlib.Path("runs", default))


def _config_without_file(job: str, workdir: str) -> "ml_collections.ConfigDict":
    """The config of the run in the workdir; for `evaluate`, which needs no model, the defaults."""
    if not _is_saved(workdir) and job != "evaluate":
        raise UserError(_no_config(workdir))
    from uvit_jax.experiment.config import default_config
    from uvit_jax.experiment.saved_config import config_of_run

    return config_of_run(pathlib.Path(workdir)) if _is_saved(workdir) else default_config()


def _is_saved(workdir: str) -> bool:
    return bool(workdir) and pathlib.Path(workdir, "config.json").exists()


def _check_needs_no_config(config: "ml_collections.ConfigDict", workdir: str) -> None:
    """Raises a UserError for an evaluation that needs a config: of a model, or without a size."""
    evaluate, needed = config.evaluate, "evaluate.samples and config.evaluate.reference"
    if evaluate.make_reference:
        needed = "evaluate.reference and config.prepare.image_size"
        is_given = evaluate.reference and config.prepare.image_size
    else:
        is_given = evaluate.reference and evaluate.samples
    if not is_given:
        raise UserError(
            f"{_no_config(workdir)} (--job evaluate needs neither where config.{needed} are given)"
        )


def _no_config(workdir: str) -> str:
    if workdir:
        return f"{workdir} holds no config.json: give --config, or the --workdir of an earlier run"
    return (
        "--config is missing, expected --config configs/<name>.py, or the --workdir of an "
        "earlier run"
    )


def _run_job(
    name: str, experiment: "Experiment", workdir: pathlib.Path, *, config: str = ""
) -> NoReturn:
    """Runs one job on every host; config: its file, for the log.

    However it ends here, the other hosts learn of it, so that none hangs in a collective.
    """
    from uvit_jax import failures
    from uvit_jax.experiment.headline import headed, headline
    from uvit_jax.experiment.saved_config import to_save
    from uvit_jax.experiment.workdir import agree_on_run
    from uvit_jax.parallel import distributed, hosts
    from uvit_jax.parallel.compile_cache import keep_compiled_programs
    from uvit_jax.parallel.gpu_memory import use_cuda_allocator
    from uvit_jax.parallel.process_exit import leave

    failures.quiet_libraries()
    # agreed: every process reaches this exit. every_host_prints: not only process 0 reports.
    agreed, every_host_prints, stream = True, False, sys.stderr
    try:
        if name not in _SINGLE_HOST:
            use_cuda_allocator(os.environ)
            distributed.start(
                experiment.distributed,
                os.environ,
                preemption=name == "train",
                prefix="config.distributed.",
            )
            if not hosts.is_first():
                logging.getLogger("uvit_jax").setLevel(logging.WARNING)
            agree_on_run(name, to_save(experiment), workdir)
            keep_compiled_programs(os.environ)
        # prepare lays a mesh of its own over the devices of each host.
        mesh = None if name == "prepare" else experiment.mesh
        devices = name not in _SINGLE_HOST
        with headed(headline(name, config or str(workdir), mesh, devices=devices)):
            job = importlib.import_module(f"uvit_jax.jobs.{name}")
            line, code, stream = job.run(experiment, workdir), 0, sys.stdout
    except Failed as error:
        line, code, stream = str(error), 1, sys.stdout
    except Preempted as error:
        line, code = str(error), 143
    except UserError as error:
        failures.log_traceback(error)
        line, code = f"error: {error}", 2
        agreed, every_host_prints = isinstance(error, hosts.SharedError), True
    except KeyboardInterrupt:
        line, code, agreed, every_host_prints = _INTERRUPTED, 130, False, True
    except Exception as error:
        sentence = failures.sentence(error, name, experiment, workdir)
        if sentence is None and not hosts.are_several():
            raise
        failures.log_traceback(error)
        line = f"error: {sentence}" if sentence else traceback.format_exc()
        code, agreed, every_host_prints = 1, False, True
    if hosts.is_first():
        print(line, file=stream, flush=True)
    elif every_host_prints:
        print(f"process {hosts.index()}: {line}", file=stream, flush=True)
    leave(code, agreed=agreed)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses absl's flags; every mistake ends the process with one sentence."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(_one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).removeprefix("ERROR:: ").split())


def _fail(message: object) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


if __name__ == "__main__":
    run()
