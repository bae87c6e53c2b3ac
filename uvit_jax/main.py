"""The command line: reads the config and hands over to one job."""

import importlib
import logging
import os
import pathlib
import re
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from uvit_jax.errors import Failed, Preempted, UserError
from uvit_jax.jobs.config_file import check_flags, read_config
from uvit_jax.jobs.paths import local_path

if TYPE_CHECKING:
    from uvit_jax.jobs.config import Experiment

JOBS = ("train", "sample", "evaluate", "prepare", "preflight")
# This one asks no devices for anything, and so joins no other hosts.
_ALONE = ("preflight",)


class _ConfigFile(flags.ArgumentParser):
    """Reads the value of --config, and tells of fields that are to be set on the command line but are not there."""

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        config = read_config(argument)
        # Where ml_collections looks for them.
        found = [re.match(r"--?(?:no)?config\.([^=]*)", arg) for arg in sys.argv[1:]]
        check_flags(config, [field[1] for field in found if field])
        return config.lock()

    def flag_type(self) -> str:
        return "config file"


_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, as configs/digits.py or configs/digits.py:variant; a field of it is --config.a.b=c."
)
flags.FLAGS["config"].parser = _ConfigFile()
_JOB = flags.DEFINE_enum("job", "train", JOBS, "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/<name of the config>.")

_INTERRUPTED = "\ninterrupted: the same command continues from the last checkpoint"
_SECONDS_TO_END = 30.0
_HERE = pathlib.Path(__file__).parent
_SAVED_CONFIG = _HERE / "jobs" / "saved_config.py"


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the job that the command line asks for; the process ends with 0 only when it is done."""
    # The libraries below log every file they touch; --verbosity=1 shows that.
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("uvit_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        app.run(_main, argv=list(sys.argv if argv is None else argv), flags_parser=_parse)
    except SystemExit as ended:
        _end_soon(ended.code if isinstance(ended.code, int) else 1)
        raise


def _end_soon(code: int) -> None:
    """Ends the process though a library's thread may wait for what never comes, as after a save that failed."""
    timer = threading.Timer(_SECONDS_TO_END, os._exit, [code])
    timer.daemon = True
    timer.start()


def _main(argv: Sequence[str]) -> None:
    try:
        if len(argv) > 1:
            raise UserError(f"{argv[1]!r} is no flag, expected only --config, --job, --workdir and --config.<field>")
        # Imported late: --help needs no jax.
        from uvit_jax.jobs.config import resolve

        config = _CONFIG.value.copy_and_resolve_references()
        _run_job(_JOB.value, resolve(config), _workdir())
    except UserError as error:
        _fail(error)
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        sys.exit(130)


def _run_job(name: str, experiment: "Experiment", workdir: pathlib.Path) -> NoReturn:
    """Runs a job, on all hosts of the run; whatever ends it on this one, the others are not left waiting for it."""
    from uvit_jax.jobs import failures
    from uvit_jax.jobs.workdir import agree_on_run
    from uvit_jax.parallel import hosts
    from uvit_jax.parallel.compile_cache import keep_compiled_programs
    from uvit_jax.parallel.gpu_memory import use_cuda_allocator

    failures.quiet_libraries()
    # Whether all processes come to their ends here, and whether each has something of its own to say.
    together, each, stream = True, False, sys.stderr
    try:
        if name not in _ALONE:
            use_cuda_allocator(os.environ)
            hosts.start(experiment.distributed, os.environ, preemption=name == "train")
            if not hosts.is_first():
                logging.getLogger("uvit_jax").setLevel(logging.WARNING)
            agree_on_run(name, experiment, workdir)
            keep_compiled_programs(os.environ)
        told, code, stream = importlib.import_module(f"uvit_jax.jobs.{name}").run(experiment, workdir), 0, sys.stdout
    except Failed as error:
        told, code, stream = str(error), 1, sys.stdout
    except Preempted as error:
        told, code = str(error), 143
    except UserError as error:
        failures.log_traceback(error)
        told, code, together, each = f"error: {error}", 2, isinstance(error, hosts.SharedError), True
    except KeyboardInterrupt:
        told, code, together, each = _INTERRUPTED, 130, False, True
    except Exception as error:
        sentence = failures.sentence(error, name, experiment, workdir)
        if sentence is None and not hosts.are_several():
            raise
        failures.log_traceback(error)
        told = f"error: {sentence}" if sentence else traceback.format_exc()
        code, together, each = 1, False, True
    if hosts.is_first():
        print(told, file=stream, flush=True)
    elif each:
        print(f"process {hosts.index()}: {told}", file=stream, flush=True)
    hosts.leave(code, agreed=together)


def _parse(argv: Sequence[str]) -> list[str]:
    """absl's flag parsing, every mistake as one sentence."""
    try:
        return flags.FLAGS(_find_config(list(argv)))
    except UserError as error:
        _fail(error)
    except flags.IllegalFlagValueError as error:
        _fail(_refused_value(error))
    except (flags.Error, TypeError, ValueError) as error:
        _fail(_one_line(error))


def _find_config(argv: list[str]) -> list[str]:
    """Completes --config: from the installed package where the file is not here, from the workdir without it."""
    given = {arg.lstrip("-").partition("=")[0]: i for i, arg in enumerate(argv) if arg.startswith("-")}
    if "config" in given:
        # The value stands behind the equals sign or in the next argument.
        place = given["config"] + ("=" not in argv[given["config"]])
        head, path = "".join(argv[place : place + 1]).rpartition("config=")[::2]
        file, colon, variant = path.partition(":")
        packaged = _HERE / "configs" / pathlib.Path(file).name
        if not pathlib.Path(file).exists() and packaged.is_file():
            argv[place] = f"{head}{'config=' if head else ''}{packaged}{colon}{variant}"
    elif "workdir" in given:
        place = given["workdir"] + ("=" not in argv[given["workdir"]])
        workdir = local_path("--workdir", "".join(argv[place : place + 1]).rpartition("workdir=")[2])
        if workdir and not pathlib.Path(workdir, "config.json").exists():
            raise UserError(f"{workdir} holds no config.json: give --config, or the --workdir of an earlier run")
        argv.insert(1, f"--config={_SAVED_CONFIG}:{workdir}")
    elif not any(arg.lstrip("-").startswith("help") for arg in argv):
        raise UserError("--config is missing, expected --config configs/<name>.py, or the --workdir of an earlier run")
    return argv


def _workdir() -> pathlib.Path:
    if _WORKDIR.value:
        return pathlib.Path(local_path("--workdir", _WORKDIR.value))
    path, variant = _config_path()
    name = pathlib.Path(path).stem
    return pathlib.Path("runs") / (f"{name}-{variant}" if variant else name)


def _config_path() -> tuple[str, str]:
    """The config file and the variant asked for, empty where there is none."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return path, variant


def _refused_value(error: flags.IllegalFlagValueError) -> str:
    """What is wrong with a flag's value: in our own words, where we refused it or know its type."""
    cause = error.__context__
    if isinstance(cause, UserError):
        return str(cause)
    text = _one_line(error)
    name, _, value = text.removeprefix("flag --").removesuffix(f": {_one_line(cause)}").partition("=")
    kind = flags.FLAGS[name].flag_type() if name in flags.FLAGS else ""
    return f"{name} is {value!r}, expected {kind}" if kind in ("int", "float", "bool") else text


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _fail(message: object) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


if __name__ == "__main__":
    run()
