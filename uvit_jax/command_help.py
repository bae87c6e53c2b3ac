"""The texts of --help: of the program, of one job, and of every field of a config."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from uvit_jax.command_line import EXAMPLES, FLAG, HELP, JOBS
from uvit_jax.experiment.config_file import packaged_configs

if TYPE_CHECKING:
    from uvit_jax.experiment.field_docs import FieldDoc

_WIDTH = 100


def asked_for_help(argv: Sequence[str]) -> str | None:
    """The name of the first flag that asks for help, as "helpfull"; None where there is none."""
    found = [FLAG.fullmatch(argument) for argument in argv[1:]]
    return next((flag[1] for flag in found if flag and flag[1] in HELP), None)


def help_asked(flag: str, argv: Sequence[str]) -> str:
    """The text that a command line with this flag for help asks for.

    It is the program's; or a job's, where one is named; or, with "helpfull" or "config.help", all
    fields of the config.
    """
    if flag in ("helpfull", "config.help"):
        return f"{help_text(packaged_configs())}\n{fields_text()}"
    words = [re.sub("^--?job=", "", argument) for argument in argv[1:]]
    job = next((word for word in words if word in JOBS), None)
    return job_text(job) if job else help_text(packaged_configs())


def help_text(configs: Sequence[str]) -> str:
    """Text of --help; configs: names of those that came with an installed package."""
    packaged = f"\nConfigs that came with it: {', '.join(configs)}\n" if configs else ""
    return f"""U-ViT in JAX: prepares data, trains, samples and evaluates.

usage:
  uvit-jax [JOB] --config FILE.py[:VARIANT] [--workdir DIR] [--config.SECTION.FIELD=VALUE ...]
  uvit-jax [JOB] --workdir DIR [...]
      goes on with the run in DIR, with the config it was started with
  uvit-jax evaluate --config.evaluate.samples=A --config.evaluate.reference=B
      compares two folders of images

{_flags()}
{packaged}
python -m uvit_jax is the same command.
Exit codes: 0 done, 1 failed, 2 a mistake in the command, 143 stopped and saved.
"""


def job_text(job: str) -> str:
    """Text of --help for one job: two examples, its own section's fields and the flags."""
    # Imported late: --help without a job needs no jax.
    from uvit_jax.experiment.field_docs import field_docs, section_texts

    examples = "\n".join(_command(example) for example in EXAMPLES[job])
    docs = [doc for doc in field_docs() if doc.section == job]
    others = ", ".join(section for section in section_texts() if section != job)
    return f"""uvit-jax {job}: {JOBS[job]}.

examples:
{examples}

{_flags()}

{_filled(f"fields of config.{job}: {section_texts()[job]}")}
{_listed(docs)}

{_filled(f"Other sections: {others}. --config.help lists their fields.")}
"""


def fields_text() -> str:
    """Every field of a config, section by section."""
    from uvit_jax.experiment.field_docs import field_docs, section_texts

    docs, parts = field_docs(), []
    for section, text in {"": "Every field, at its default.", **section_texts()}.items():
        title = _filled(f"config.{section}: {text}" if section else text)
        parts.append(f"{title}\n{_listed(doc for doc in docs if doc.section == section)}")
    return "\n\n".join(parts) + "\n"


def _command(example: str) -> str:
    """A command as a shell takes it, over several lines where it is long."""
    lines = textwrap.wrap(f"uvit-jax {example}", _WIDTH - 8, break_on_hyphens=False)
    return "  " + " \\\n      ".join(lines)


def _flags() -> str:
    jobs = "\n".join(f"      {name:10} {what}" for name, what in JOBS.items())
    return f"""\
  --config FILE.py[:VARIANT]  the experiment, as configs/digits.py or configs/imagenet256.py:large
  --job JOB                   what to do (default: train); the job alone says the same:
{jobs}
  --workdir DIR               folder of the run (default: runs/NAME, after the config's file)
  --config.SECTION.FIELD=VALUE
                              a field of the config in place of the file's, as
                              --config.train.steps=1000, --config.data.flip=true or
                              --config.optimizer.betas=0.9,0.99
  --help                      this text; uvit-jax JOB --help: two examples and the fields of a job
  --config.help, --helpfull   every field with its type, default and meaning"""


def _listed(docs: Iterable["FieldDoc"]) -> str:
    return "\n".join(
        f"  --config.{doc.name}={doc.default!r}  ({doc.type})\n" + _filled(doc.text, indent=" " * 6)
        for doc in docs
    )


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
