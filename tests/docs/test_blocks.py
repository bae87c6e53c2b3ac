"""Commands and code in the README and the documentation can be copied."""

import ast
import importlib
import os
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence

import pytest

from tests.docs.blocks import MODES, PYTHON, ROOT, SHELL, Block, all_blocks, blocks_in, commands
from tests.jobs.runs import TINY, environment
from tests.launch.programs import executable
from tests.launch.test_tpu_vm import Cloud, checkout  # noqa: F401, a fixture
from uvit_jax.command_help import asked_for_help, help_asked
from uvit_jax.command_line import JOBS, separate
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import default_config, load_experiment, resolve, set_fields

BLOCKS = all_blocks()
# Programs of others: their arguments are not ours to check.
FOREIGN = {"cd", "docker", "gcloud", "git", "jupyter", "kubectl", "source", "tensorboard", "time"}
FOREIGN |= {".", "pre-commit", "uv", "uvx", "xpk"}
MAKE_TARGETS = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def check_ours(arguments: Sequence[str]) -> None:
    """Reads a command of the program as the program does."""
    if flag := asked_for_help(["uvit-jax", *arguments]):
        assert help_asked(flag, ["uvit-jax", *arguments])
        return
    kept, fields = separate(["uvit-jax", *arguments])
    given = dict(flag.removeprefix("--").split("=", 1) for flag in kept[1:] if "=" in flag)
    assert given.keys() <= {"config", "job", "workdir"}
    assert given.get("job", "train") in JOBS
    if "config" in given:
        load_experiment(given["config"], fields)
    elif "workdir" in given:
        name = pathlib.Path(given["workdir"]).name.replace("in512", "imagenet512")
        file = f"configs/{name}.py"
        load_experiment(file if (ROOT / file).exists() else "configs/digits.py", fields)
    else:
        config = default_config()
        set_fields(config, fields)
        resolve(config)


def check_script(script: str, arguments: Sequence[str]) -> None:
    """The script is there and knows the flags."""
    path = ROOT / script
    assert path.exists(), script
    source = path.read_text() + (ROOT / "benchmarks" / "official_code.py").read_text()
    for argument in arguments:
        if re.match(r"--\w", argument) and not argument.startswith("--config."):
            assert f'"{argument.split("=")[0]}"' in source, f"{script} has no {argument}"


def check_launcher(script: str, arguments: Sequence[str], cloud: Cloud) -> None:
    """Runs a launcher dry, against stand-ins; what it would start is read as the program does."""
    given = list(arguments)
    if script.endswith("slurm.sh"):
        own = [argument for argument in given if argument != "--dry-run"]
        check_ours(own)
        executable(cloud.folder / "python", "#!/bin/sh\nexit 0\n")
        variables = {"PATH": f"{cloud.folder}:{os.environ['PATH']}", "UVIT_VENV": "none"}
        done = subprocess.run(
            ["bash", script, "--dry-run", *own],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert "uvit_jax.main" in done.stdout
    else:
        if "--" in given:
            check_ours(given[given.index("--") + 1 :])
        action = given.pop(0) if given[0] in ("logs", "status", "down") else "run"
        done = cloud.launch(action, "--dry-run", *given, flags=())
    assert done.returncode == 0, done.stderr


def check_pip(arguments: Sequence[str]) -> None:
    """Extras that are installed are there."""
    for extras in re.findall(r"(?:\.|uvit[-_]jax)\[([\w,-]+)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= EXTRAS.keys(), f"there is no extra {extras}"


def check(words: Sequence[str], cloud: Cloud) -> None:
    """Checks one command by the program that it starts."""
    program, *rest = words
    if program == "sbatch":
        at = next(i for i, word in enumerate(rest) if not word.startswith("-"))
        program, rest = rest[at], rest[at + 1 :]
    if program == "uvit-jax":
        check_ours(rest)
    elif program.startswith("launch/"):
        check_launcher(program, rest, cloud)
    elif program == "make":
        targets = [word for word in rest if "=" not in word]
        assert set(targets) <= set(MAKE_TARGETS), f"make has no target {targets}"
    elif program in ("python", "python3"):
        if rest[:2] in (["-m", "uvit_jax.main"], ["-m", "uvit_jax"]):
            check_ours(rest[2:])
        elif rest[0] == "-m":
            assert rest[1] in ("pip", "venv", "pytest") or importlib.util.find_spec(rest[1])
        else:
            check_script(rest[0], rest[1:])
    elif program == "pip":
        check_pip(rest)
    elif program == "pytest":
        paths = [word.split("::")[0] for word in rest if word.startswith("tests")]
        assert all((ROOT / path).exists() for path in paths), paths
    else:
        assert program in FOREIGN, f"{program} is neither ours nor in FOREIGN of this test"


@pytest.fixture
def cloud(tmp_path, checkout) -> Cloud:  # noqa: F811
    """A stand-in for gcloud that answers the launcher's questions."""
    return Cloud(tmp_path, checkout)


def ids(blocks: Sequence[Block]) -> list[str]:
    return [str(block) for block in blocks]


SHELL_BLOCKS = [block for block in BLOCKS if block.language == "sh" and block.mode != "skip"]
PYTHON_BLOCKS = [block for block in BLOCKS if block.language == "python" and block.mode != "skip"]


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=ids(SHELL_BLOCKS))
def test_a_shell_block_is_right(block, cloud):
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    found = list(commands(block.text))
    assert found
    for words in found:
        check(words, cloud)


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=ids(PYTHON_BLOCKS))
def test_a_python_block_compiles_and_imports_what_is_there(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uvit_jax"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(whole), whole


def test_blocks_are_read_with_their_comments():
    text = "a\n\n<!-- test: skip it is slow -->\n```sh\nls\n```\n\n  ```python\n  x = 1\n  ```\n"
    first, second = blocks_in(text, "page.md")
    assert (first.mode, first.reason, first.line, first.text) == ("skip", "it is slow", 4, "ls\n")
    assert (second.mode, second.language, second.text) == ("parse", "python", "x = 1\n")


def test_every_comment_names_a_mode_and_a_skipped_block_its_reason():
    assert not [str(block) for block in BLOCKS if block.mode not in MODES]
    assert not [str(block) for block in BLOCKS if (block.mode == "skip") != bool(block.reason)]
    assert {"sh", "python"} == {*SHELL[:1], *PYTHON[:1]}
    assert len(BLOCKS) >= 40


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("uvit-jax train --config configs/digits.py --config.model.dept=3", UserError),
        ("uvit-jax trian --config configs/digits.py", UserError),
        ("uvit-jax train --config configs/digit.py", UserError),
        ("make digit", AssertionError),
        ("pip install -e '.[cudaa]'", AssertionError),
        ("python benchmarks/train_step.py --batchsize 3", AssertionError),
        ("launch/tpu_vm.sh --nmae run", AssertionError),
        ("sbatch launch/slurm.sh --config configs/nosuch.py", UserError),
    ],
)
def test_a_wrong_command_is_found(line, error, cloud):
    [words] = commands(line)
    with pytest.raises(error):
        check(words, cloud)


def runs() -> dict[str, list[Block]]:
    """The blocks that are executed, by page: a page's share a folder, and run in order."""
    pages: dict[str, list[Block]] = {}
    for block in BLOCKS:
        if block.mode == "run":
            pages.setdefault(block.page, []).append(block)
    return pages


def tiny(words: Sequence[str]) -> list[str]:
    """The command of the program with a network and a run that take seconds."""
    assert words[0] == "uvit-jax", words
    given = " ".join(words)
    sizes = {"evaluate.num_samples": 40, "evaluate.num_features": 40} | TINY
    if "--config " not in given:
        sizes = {name: value for name, value in sizes.items() if name.startswith("sample.steps")}
        sizes |= {"evaluate.num_samples": 40, "evaluate.num_features": 40}
    flags = [f"--config.{n}={v}" for n, v in sizes.items() if f"--config.{n}=" not in given]
    few = re.sub(r"(num_samples)=\d{3,}", r"\1=40", "\0".join(words[1:])).split("\0")
    return [sys.executable, "-m", "uvit_jax.main", *few, *flags]


@pytest.mark.slow
@pytest.mark.parametrize("page", runs())
def test_the_blocks_of_a_page_run_one_after_another(page, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    for block in runs()[page]:
        lines = (
            [tiny(words) for words in commands(block.text)]
            if block.language == "sh"
            else [[sys.executable, "-c", block.text]]
        )
        for line in lines:
            done = subprocess.run(
                line, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, f"{block}: {' '.join(line)}\n{done.stderr[-2000:]}"
