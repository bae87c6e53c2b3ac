import re
import shlex

import pytest

from tests.jobs.runs import ROOT
from uvit_jax import main
from uvit_jax.command_help import asked_for_help, help_asked, help_text
from uvit_jax.command_line import EXAMPLES, JOBS, separate
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import field_names
from uvit_jax.experiment.field_docs import field_docs


def test_the_programs_flags_and_the_configs_fields_are_told_apart():
    argv = [
        "uvit-jax",
        "-config",
        "x.py:a",
        "--job=sample",
        "--config.a.b=c=d",
        "--config.a.n",
        "-3",
        "--workdir",
        "w",
    ]
    kept, fields = separate(
        [*argv, "--noconfig.data.flip", "--config.sample.out=", "--verbosity", "1", "--config.b"]
    )
    assert kept == ["uvit-jax", "--config=x.py:a", "--job=sample", "--workdir=w", "--verbosity=1"]
    assert fields == {"a.b": "c=d", "a.n": "-3", "data.flip": "false", "sample.out": "", "b": None}


def test_of_a_field_that_is_set_twice_the_last_counts():
    assert separate(["uvit-jax", "--config.a=1", "--config.b=2", "--config.a", "3"])[1] == {
        "b": "2",
        "a": "3",
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "train configs/x.py",
            "unexpected argument 'train', did you mean --job train --config configs/x.py?",
        ),
        ("smaple --workdir w", "unexpected argument 'smaple', did you mean --job sample?"),
        (
            "sample configs",
            "unexpected argument 'sample', did you mean --job sample --workdir configs?",
        ),
        (
            "configs/x.py:large",
            "unexpected argument 'configs/x.py:large', did you mean --config configs/x.py:large?",
        ),
        (
            "--config = x.py",
            "unexpected argument 'x.py'; flags are --config, --job, --workdir, "
            "--config.SECTION.FIELD",
        ),
        (
            "--config x.py train.steps=3",
            "unexpected argument 'train.steps=3', did you mean --config.train.steps=3?",
        ),
        (
            "--config x.py stray",
            "unexpected argument 'stray'; flags are --config, --job, --workdir,",
        ),
        ("--confg configs/x.py", "unknown flag --confg, did you mean --config?"),
        ("-confg=configs/x.py", "unknown flag --confg, did you mean --config?"),
        ("--config x.py --wrkdir=w", "unknown flag --wrkdir, did you mean --workdir?"),
        ("--config x.py --work_dir w", "unknown flag --work_dir, did you mean --workdir?"),
        ("--jb sample", "unknown flag --jb, did you mean --job?"),
        ("--hlep", "unknown flag --hlep, did you mean --help?"),
        ("--train.steps=3", "unknown flag --train.steps, did you mean --config.train.steps?"),
        (
            "--cofig.train.steps=3",
            "unknown flag --cofig.train.steps, did you mean --config.train.steps?",
        ),
        (
            "--cfg.train.steps=3",
            "unknown flag --cfg.train.steps, did you mean --config.train.steps?",
        ),
        ("--trian.steps=3", "unknown flag --trian.steps, did you mean --config.train.steps?"),
        (
            "--steps=3",
            "unknown flag --steps, did you mean --config.train.steps or --config.sample.steps?",
        ),
        (
            "--colour=red",
            "unknown flag --colour, expected --config, --job, --workdir or --config.SECTION.FIELD",
        ),
        ("--config", "--config has no value, expected one as --config configs/digits.py"),
        ("--config=", "--config has no value, expected one as --config configs/digits.py"),
        ("--workdir --job sample", "--workdir has no value, expected one as --workdir runs/digits"),
        ("--workdir=", "--workdir has no value, expected one as --workdir runs/digits"),
        ("--config x.py --job", "--job has no value, expected one as --job train"),
        (
            "--config a/x.py --config b/x.py",
            "--config is given twice, as 'a/x.py' and as 'b/x.py', expected one",
        ),
        (
            "--workdir a --workdir=b",
            "--workdir is given twice, as 'a' and as 'b', expected one of them",
        ),
    ],
)
def test_a_mistake_in_the_flags_is_told_with_the_right_one(arguments, sentence):
    with pytest.raises(UserError) as refused:
        separate(["uvit-jax", *arguments.split()])
    assert str(refused.value).startswith(sentence)


def test_the_same_flag_twice_with_one_value_is_no_mistake():
    assert separate(["uvit-jax", "--config", "x.py", "--config=x.py"])[1] == {}


@pytest.mark.parametrize(
    "flag", ["--help", "-h", "-help", "--helpshort", "--help=true", "--helpfull"]
)
def test_help_is_printed_and_is_no_failure(capsys, flag):
    assert asked_for_help(["uvit-jax", "--job", "sample", flag])
    main.run(["uvit-jax", "--job", "sample", flag])
    out, err = capsys.readouterr()
    for name in (
        "--config ",
        "--job ",
        "--workdir ",
        "--config.SECTION.FIELD=VALUE",
        "train",
        "evaluate",
        "prepare",
    ):
        assert name in out
    assert ("--config.train.steps=500000" in out) == (flag == "--helpfull")
    assert err == ""


def test_help_names_the_configs_that_came_with_an_installed_package():
    assert "configs/digits.py, configs/x.py" in help_text(["configs/digits.py", "configs/x.py"])


def test_what_an_absl_flag_refuses_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        main.run(["uvit-jax", "--config=configs/digits.py", "--verbosity=loud"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: flag --verbosity=loud: ")


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ("sample --workdir w", ["--workdir=w", "--job=sample"]),
        ("--config x.py evaluate", ["--config=x.py", "--job=evaluate"]),
    ],
)
def test_a_job_needs_no_flag(arguments, kept):
    assert separate(["uvit-jax", *arguments.split()])[0] == ["uvit-jax", *kept]


@pytest.mark.parametrize("arguments", ["sample --job sample", "--job=train sample", "sample train"])
def test_a_second_job_is_unexpected(arguments):
    with pytest.raises(UserError, match=r"^unexpected argument 'sample'"):
        separate(["uvit-jax", *arguments.split()])


@pytest.mark.parametrize("job", JOBS)
def test_the_help_of_a_job_explains_its_own_fields_and_shows_commands_that_are_right(job):
    text = help_asked("help", ["uvit-jax", job, "--help"])
    assert help_asked("help", ["uvit-jax", f"--job={job}", "-h"]) == text
    own = [doc for doc in field_docs() if doc.section == job]
    for doc in own:
        assert f"--config.{doc.name}={doc.default!r}  ({doc.type})" in text
    unwrapped = " ".join(text.split())
    assert all(doc.text in unwrapped for doc in own)
    assert set(re.findall(r"^  --config\.(\w+)\.", text, re.MULTILINE)) == {job, "SECTION"}
    shown = text.partition("examples:\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    examples = [shlex.split(line) for line in shown.splitlines()]
    assert examples == [["uvit-jax", *shlex.split(example)] for example in EXAMPLES[job]]
    for example in examples:
        kept, fields = separate(example)
        assert f"--job={job}" in kept
        assert set(fields) <= set(field_names())
        config = next((flag.partition("=")[2] for flag in kept if flag.startswith("--config")), "")
        assert not config or (ROOT / config).is_file()
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("flag", ["--config.help", "--helpfull"])
def test_every_field_is_listed_with_its_type_default_and_meaning(capsys, flag):
    main.run(["uvit-jax", "sample", flag])
    text = " ".join(capsys.readouterr().out.split())
    for doc in field_docs():
        assert f"--config.{doc.name}={doc.default!r} ({doc.type}) {doc.text}" in text
