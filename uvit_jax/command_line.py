"""The command line as text: its flags, the config's fields, and the mistakes in either."""

import pathlib
import re
from collections.abc import Mapping, Sequence

from absl import flags

from uvit_jax.errors import UserError, nearest

JOBS = {
    "train": "trains, or goes on from the last checkpoint of the workdir",
    "sample": "draws samples of a run, or of the weights in --config.init_from",
    "evaluate": "scores samples: a run's own, or a folder of images against another",
    "prepare": "makes the data set that training reads, of a folder of images or TFDS",
    "preflight": "compiles a run for a TPU slice or this machine: memory, cost, the best mesh",
}
# The program's own flags, and an example of a value for each.
_VALUES = {"config": "configs/digits.py", "job": "train", "workdir": "runs/digits"}
_HELP = ("help", "helpshort", "helpfull", "helpxml", "h", "?")
_FLAG = re.compile(r"--?([^-=\s][^=]*)(?:=(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-\.?\d.*")


def asked_for_help(argv: Sequence[str]) -> str | None:
    """The name of the first flag that asks for help, as "helpfull"; None where there is none."""
    found = [_FLAG.fullmatch(argument) for argument in argv[1:]]
    return next((flag[1] for flag in found if flag and flag[1] in _HELP), None)


def help_text(configs: Sequence[str]) -> str:
    """Text of --help; configs: names of those that came with an installed package."""
    jobs = "\n".join(f"      {name:10} {what}" for name, what in JOBS.items())
    packaged = f"\nConfigs that came with it: {', '.join(configs)}\n" if configs else ""
    return f"""U-ViT in JAX: prepares data, trains, samples and evaluates.

usage:
  uvit-jax [--job JOB] --config FILE.py[:VARIANT] [--workdir DIR] [--config.SECTION.FIELD=VALUE ...]
  uvit-jax [--job JOB] --workdir DIR [...]
      goes on with the run in DIR, with the config it was started with
  uvit-jax --job evaluate --config.evaluate.samples=A --config.evaluate.reference=B
      compares two folders of images

  --config FILE.py[:VARIANT]  the experiment, as configs/digits.py or configs/imagenet256.py:large
  --job JOB                   what to do (default: train):
{jobs}
  --workdir DIR               folder of the run (default: runs/NAME, after the config's file)
  --config.SECTION.FIELD=VALUE
                              a field of the config in place of the file's, as
                              --config.train.steps=1000, --config.data.flip=true or
                              --config.optimizer.betas=0.9,0.99
  --help, --helpfull          this text; --helpfull also lists every field with its default
{packaged}
python -m uvit_jax is the same command.
Exit codes: 0 done, 1 failed, 2 a mistake in the command, 143 stopped and saved.
"""


def separate(argv: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """Splits a command line into absl's part and the config's fields by their dotted names.

    A field without a value is None.

    Raises:
      UserError: for an unknown flag, one without a value or given twice, or an argument without a
        flag.
    """
    kept, strays, waiting = [argv[0]], [], list(argv[1:])
    fields: dict[str, str | None] = {}
    given: dict[str, str] = {}
    while waiting:
        argument = waiting.pop(0)
        found = _FLAG.fullmatch(argument)
        if found is None or _NUMBER.fullmatch(argument):
            strays += [] if argument == "--" else [argument]
            continue
        name, value = found[1], found[2]
        field = re.fullmatch(r"(no)?config\.(.*)", name, re.DOTALL)
        takes_value = (field is not None and not field[1]) or _takes_value(name)
        if value is None and takes_value and waiting and not _is_flag(waiting[0]):
            value = waiting.pop(0)
        if field is not None:
            fields.pop(field[2], None)  # the last one counts, and its place
            fields[field[2]] = "false" if field[1] else value
        elif name in _VALUES:
            if not value:
                raise UserError(f"--{name} has no value, expected one as --{name} {_VALUES[name]}")
            if given.setdefault(name, value) != value:
                raise UserError(
                    f"--{name} is given twice, as {given[name]!r} and as {value!r}, expected one "
                    f"of them"
                )
            kept.append(f"--{name}={value}")
        elif name in flags.FLAGS or name.removeprefix("no") in flags.FLAGS:
            kept.append(
                argument if value is None or found[2] is not None else f"{argument}={value}"
            )
        else:
            raise UserError(_unknown(name))
    if strays:
        raise UserError(_stray(strays, given))
    return kept, fields


def _takes_value(name: str) -> bool:
    return name in _VALUES or (name in flags.FLAGS and not flags.FLAGS[name].boolean)


def _is_flag(argument: str) -> bool:
    return _FLAG.fullmatch(argument) is not None and not _NUMBER.fullmatch(argument)


def _unknown(name: str) -> str:
    """The sentence for an unknown flag, with a known one that is near."""
    head, dot, rest = name.partition(".")
    if dot and nearest(head, ["config"]):
        meant = [f"config.{rest}"]
    elif close := None if dot else nearest(name, [*_VALUES, "help"]):
        meant = [close]
    else:
        # Imported late: most mistakes need no list of the config's fields.
        from uvit_jax.experiment.config import field_names

        names = field_names()
        near = [field for field in names if field in (name, rest) or field.endswith(f".{name}")]
        if not near and dot:
            near = [field for field in [nearest(name, names)] if field]
        meant = [f"config.{field}" for field in near]
    if not meant:
        return (
            f"unknown flag --{name}, expected --config, --job, --workdir or "
            f"--config.SECTION.FIELD: see --help"
        )
    return f"unknown flag --{name}, did you mean {' or '.join(f'--{flag}' for flag in meant)}?"


def _stray(strays: Sequence[str], given: Mapping[str, str]) -> str:
    """The sentence for arguments without a flag, with a command that they are near to."""
    meant: dict[str, str] = {}
    for stray in strays:
        setting = re.fullmatch(r"(?:config\.)?(\w+\.\w+=.*)", stray, re.DOTALL)
        if setting:
            meant[setting[1]] = f"--config.{setting[1]}"
        elif job := nearest(stray, JOBS):
            meant["job"] = f"--job {job}"
        elif re.search(r"\.py(:|$)", stray):
            meant["config"] = f"--config {stray}"
        elif pathlib.Path(stray).is_dir():
            meant["workdir"] = f"--workdir {stray}"
    if len(meant) == len(strays) and not set(meant) & set(given):
        return f"unexpected argument {strays[0]!r}, did you mean {' '.join(meant.values())}?"
    return (
        f"unexpected argument {strays[0]!r}; flags are --config, --job, --workdir, "
        f"--config.SECTION.FIELD: see --help"
    )
