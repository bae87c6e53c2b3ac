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
# Two commands of each job, without the program's name.
EXAMPLES = {
    "train": (
        "train --config configs/digits.py --workdir runs/wide --config.model.embed_dim=256",
        "train --workdir runs/wide --config.train.steps=5000",
    ),
    "sample": (
        "sample --workdir runs/digits --config.sample.labels=0,3,7 --config.sample.num_samples=30",
        "sample --config configs/imagenet256.py --config.init_from=imagenet256_uvit_huge.pth "
        '--config.sample.labels="golden retriever"',
    ),
    "evaluate": (
        "evaluate --workdir runs/digits --config.evaluate.sweep=guidance=0:2:0.5",
        "evaluate --config.evaluate.samples=SAMPLES --config.evaluate.reference=IMAGES",
    ),
    "prepare": (
        "prepare --config configs/cifar10.py --config.prepare.source=tfds:cifar10",
        "prepare --config configs/imagenet256.py --config.prepare.source=IMAGENET",
    ),
    "preflight": (
        "preflight --config configs/imagenet512.py --config.preflight.topology=v5e:16x16",
        "preflight --config configs/digits.py --config.preflight.search=true",
    ),
}
# The program's own flags, and an example of a value for each.
_VALUES = {"config": "configs/digits.py", "job": "train", "workdir": "runs/digits"}
# Flags that ask for help; the last two list every field.
HELP = ("help", "helpshort", "helpxml", "h", "?", "helpfull", "config.help")
FLAG = re.compile(r"--?([^-=\s][^=]*)(?:=(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-\.?\d.*")


def separate(argv: Sequence[str]) -> tuple[list[str], dict[str, str | None]]:
    """Splits a command line into absl's part and the config's fields by their dotted names.

    A job may stand without its flag, as in "uvit-jax sample --workdir runs/digits". A field without
    a value is None.

    Raises:
      UserError: for an unknown flag, one without a value or given twice, or another argument
        without a flag.
    """
    kept, strays, waiting = [argv[0]], [], list(argv[1:])
    fields: dict[str, str | None] = {}
    given: dict[str, str] = {}
    while waiting:
        argument = waiting.pop(0)
        found = FLAG.fullmatch(argument)
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
    if len(strays) == 1 and strays[0] in JOBS and "job" not in given:
        kept.append(f"--job={strays.pop()}")
    if strays:
        raise UserError(_stray(strays, given))
    return kept, fields


def _takes_value(name: str) -> bool:
    return name in _VALUES or (name in flags.FLAGS and not flags.FLAGS[name].boolean)


def _is_flag(argument: str) -> bool:
    return FLAG.fullmatch(argument) is not None and not _NUMBER.fullmatch(argument)


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
