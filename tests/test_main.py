import dataclasses
import pathlib
import resource
import sys
import threading
import types

import pytest

from tests.jobs.runs import ROOT, run, run_command, tiny_experiment
from uvit_jax import main
from uvit_jax.errors import Failed, Preempted, UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.saved_config import save_config, to_save
from uvit_jax.main import open_experiment


def error_of(result) -> str:
    """The one sentence a person is shown."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    return result.stderr


# A process each; the sentences of the slow ones are tested in test_command_line and in
# tests/experiment without a process.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--config.model.dpeth=5"],
            "config.model has no field 'dpeth', did you mean 'depth'?",
            id="misspelt",
        ),
        pytest.param(
            ["--config.train.steps=many"],
            "error: config.train.steps is 'many', expected int\n",
            id="type",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--config.data.flip=maybe"],
            "error: config.data.flip is 'maybe', expected bool\n",
            id="bool",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--config.optimizer.betas=0.9"],
            "config.optimizer.betas is '0.9', expected two numbers\n",
            id="numbers",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--steps=3"],
            "unknown flag --steps, did you mean --config.train.steps or --config.sample.steps?\n",
            id="flag",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--config.model.depth=4"],
            "config.model.depth is 4, expected an odd number",
            id="depth",
        ),
        pytest.param(["--job=paint"], "paint", id="job"),
        pytest.param(
            ["--config.mesh.data=3"],
            "config.mesh.data = 3, config.mesh.fsdp = 1, config.mesh.tensor = 1 don't mul",
            id="mesh",
        ),
        pytest.param(
            ["--workdir=LICENSE/run"], "workdir LICENSE/run can't be written to", id="workdir"
        ),
        pytest.param(["stray"], "unexpected argument 'stray'", id="stray"),
    ],
)
def test_a_mistake_ends_in_one_clear_sentence(arguments, message, tmp_path):
    # `make digits` may have left a run in the default workdir.
    own = [] if arguments[0].startswith("--workdir") else [f"--workdir={tmp_path / 'run'}"]
    assert message in error_of(run(*own, *arguments, timeout=60))


def test_a_missing_config_file_is_named():
    assert "configs/digitz.py" in error_of(run(config="configs/digitz.py", tiny=False, timeout=60))


def test_a_config_file_that_fails_is_told_in_one_sentence(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("def get_config():\n    config = {}\n")
    message = error_of(run(config=str(config), tiny=False, timeout=60))
    assert message.startswith(f"error: config file {config}: get_config() returns None, expected")


def test_a_variant_of_a_config_without_any_is_refused():
    assert "configs/digits.py has no variants" in error_of(
        run(config="configs/digits.py:tiny", tiny=False, timeout=60)
    )


def test_a_misspelt_field_in_a_config_file_is_named_with_the_right_one(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        (ROOT / "configs/digits.py").read_text().replace("config.train.steps", "config.train.stepz")
    )
    message = error_of(run(config=str(config), tiny=False, timeout=60))
    assert "stepz" in message
    assert "did you mean 'steps'?" in message


@pytest.mark.parametrize(
    ("end", "code", "stdout", "stderr"),
    [
        ("made", 0, "made\n", ""),
        (Failed("it does not fit"), 1, "it does not fit\n", ""),
        (UserError("no such file"), 2, "", "error: no such file\n"),
        (Preempted("preempted at step 3"), 143, "", "preempted at step 3\n"),
        (
            MemoryError(),
            1,
            "",
            "error: the host is out of memory: lower config.train.batch_size (16), or raise "
            "config.train.microbatches "
            "(1), or set config.model.remat ('none'); no checkpoint was saved yet\n",
        ),
        (
            KeyboardInterrupt(),
            130,
            "",
            "\ninterrupted: the same command continues from the last checkpoint\n",
        ),
    ],
    ids=["done", "failed", "mistake", "preempted", "memory", "interrupted"],
)
def test_each_end_of_a_job_has_its_exit_code_and_its_line(
    monkeypatch, capsys, tmp_path, end, code, stdout, stderr
):
    def job(experiment, workdir):
        if isinstance(end, str):
            return end
        raise end

    module = types.SimpleNamespace(run=job)
    monkeypatch.setattr(main, "importlib", types.SimpleNamespace(import_module=lambda name: module))
    with pytest.raises(SystemExit) as ended:
        main._run_job("train", tiny_experiment(), tmp_path)
    assert ended.value.code == code
    assert capsys.readouterr() == (stdout, stderr)


FOLDERS = {"evaluate.samples": "a", "evaluate.reference": "b"}
MAKE = {"evaluate.make_reference": "true", "evaluate.reference": "b", "prepare.image_size": "64"}
MISSING = (
    "--config is missing, expected --config configs/<name>.py, or the --workdir of an earlier run"
)


@pytest.mark.parametrize("fields", [FOLDERS, MAKE], ids=["two folders", "a reference"])
def test_an_evaluation_without_a_model_needs_neither_a_config_nor_a_workdir(fields):
    experiment, workdir = open_experiment("evaluate", "", "", fields)
    assert workdir == pathlib.Path("runs/evaluate")
    assert (experiment.evaluate.reference, experiment.evaluate.samples) == (
        "b",
        fields.get("evaluate.samples", ""),
    )
    # Nothing else is asked for than a config's defaults.
    sections = {"evaluate": experiment.evaluate, "prepare": experiment.prepare}
    assert dataclasses.replace(Experiment(), **sections) == experiment


@pytest.mark.parametrize(
    ("job", "workdir", "fields", "sentence"),
    [
        ("train", "", {}, MISSING),
        ("train", "", FOLDERS, MISSING),
        (
            "sample",
            "nosuch",
            FOLDERS,
            "nosuch holds no config.json: give --config, or the --workdir of an earlier run",
        ),
        (
            "evaluate",
            "",
            {},
            f"{MISSING} (--job evaluate needs neither where config.evaluate.samples and config.",
        ),
        ("evaluate", "", {"evaluate.samples": "a"}, MISSING),
        ("evaluate", "", {"evaluate.samples": "a", "evaluate.reference": ""}, MISSING),
        (
            "evaluate",
            "nosuch",
            {"evaluate.reference": "b"},
            "nosuch holds no config.json: give --config, or the",
        ),
        # The images of a reference would be cropped to the size of a model that nobody asked for.
        (
            "evaluate",
            "",
            MAKE | {"prepare.image_size": "0"},
            f"{MISSING} (--job evaluate needs neither where config.",
        ),
        ("smaple", "", {}, "--job is 'smaple', expected one of 'train', 'sample'"),
    ],
)
def test_a_job_without_what_it_needs_says_so(job, workdir, fields, sentence):
    with pytest.raises(UserError) as refused:
        open_experiment(job, "", workdir, fields)
    assert str(refused.value).startswith(sentence)


def test_a_run_goes_on_with_the_config_that_it_was_started_with(tmp_path):
    made = tiny_experiment()
    save_config(to_save(made), tmp_path)
    experiment, workdir = open_experiment(
        "evaluate", "", str(tmp_path), {"evaluate.num_samples": "7"}
    )
    assert workdir == tmp_path
    assert experiment == dataclasses.replace(
        made, evaluate=dataclasses.replace(made.evaluate, num_samples=7)
    )


def test_a_workdir_is_named_after_the_config_and_its_variant():
    assert open_experiment("train", str(ROOT / "configs/digits.py"), "", {})[1] == pathlib.Path(
        "runs/digits"
    )
    large = open_experiment("train", str(ROOT / "configs/imagenet256.py:large"), "", {})
    assert large[1] == pathlib.Path("runs/imagenet256-large")


def test_a_mistake_in_the_config_is_told_without_importing_what_only_jobs_need():
    slow = (
        "flax",
        "orbax",
        "grain",
        "optax",
        "clu",
        "tensorflow_datasets",
        "matplotlib",
        "scipy",
        "sklearn",
    )
    program = f"""
import sys
from uvit_jax.errors import UserError
from uvit_jax.main import open_experiment
try:
    open_experiment("train", "nosuch.py", "", {{}})
except UserError as error:
    assert "jax" not in sys.modules, "for a file that is not there"
try:
    open_experiment("train", "configs/digits.py", "", {{"model.depth": "4"}})
except UserError as error:
    print(error)
print([name for name in {(*slow, "jax.experimental.pallas")} if name in sys.modules])
"""
    ended = run_command([sys.executable, "-c", program], timeout=60)
    assert ended.stderr == ""
    told, imported = ended.stdout.splitlines()
    assert told.startswith("config.model.depth is 4, expected an odd number")
    assert imported == "[]"


def test_the_package_is_a_command_too():
    ended = run_command(
        [sys.executable, "-m", "uvit_jax", "train", "configs/digits.py"], timeout=60
    )
    assert (
        error_of(ended) == "error: unexpected argument 'train', did you mean "
        "--job train --config configs/digits.py?\n"
    )


def test_help_takes_no_two_seconds_and_may_be_cut_short():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = f"{sys.executable} -m uvit_jax --config.help | head -1"
    ended = run_command(["bash", "-o", "pipefail", "-c", line], timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of a core: this machine may be busy with other tests.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_help_needs_no_jax():
    program = (
        "import sys\nfrom uvit_jax.main import run\nrun(['uvit-jax', '--help'])\nassert "
        "'jax' not in sys.modules"
    )
    assert run_command([sys.executable, "-c", program], timeout=60).returncode == 0


def test_a_process_ends_though_a_thread_does_not(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(main, "_SECONDS_TO_EXIT", 0.01)
    monkeypatch.setattr(main.os, "_exit", lambda code: ended.set() if code == 2 else None)
    main._exit_soon(2)
    assert ended.wait(10)
