import threading
import types

import pytest

from tests.jobs.runs import ROOT, run, tiny_experiment
from uvit_jax import main
from uvit_jax.errors import Failed, Preempted, UserError


def error_of(result) -> str:
    """The one sentence a person is shown."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.dpeth=5"], "config.model has no field 'dpeth', did you mean 'depth'?"),
        (["--config.train.steps=many"], "error: config.train.steps is 'many', expected int\n"),
        (["--config.data.flip=maybe"], "error: config.data.flip is 'maybe', expected bool\n"),
        (["--config.optimizer.betas=0.9"], "config.optimizer.betas is (0.9,), expected two numbers\n"),
        (["--steps=3"], "Unknown command line flag 'steps'\n"),
        (["--config.model.depth=4"], "config.model.depth is 4, expected an odd number"),
        (["--job=paint"], "paint"),
        (["--config.mesh.data=3"], "config.mesh.data = 3, config.mesh.fsdp = 1, config.mesh.tensor = 1 don't mul"),
        (["--workdir=LICENSE/run"], "workdir LICENSE/run can't be written to"),
        (["stray"], "'stray' is no flag"),
    ],
    ids=["misspelt", "type", "bool", "numbers", "flag", "depth", "job", "mesh", "workdir", "stray"],
)
def test_a_mistake_ends_in_one_clear_sentence(arguments, message):
    assert message in error_of(run(*arguments, timeout=60))


def test_a_missing_config_file_is_named():
    assert "configs/digitz.py" in error_of(run(config="configs/digitz.py", tiny=False, timeout=60))


def test_a_config_file_that_fails_is_told_in_one_sentence(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("def get_config():\n    config = {}\n")
    message = error_of(run(config=str(config), tiny=False, timeout=60))
    assert message.startswith(f"error: config file {config}: get_config() returns None, expected")


def test_a_variant_of_a_config_without_any_is_refused():
    assert "that config has no variants" in error_of(run(config="configs/digits.py:tiny", tiny=False, timeout=60))


def test_a_misspelt_field_in_a_config_file_is_named_with_the_right_one(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text((ROOT / "configs/digits.py").read_text().replace("config.train.steps", "config.train.stepz"))
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
            "error: the host is out of memory: lower config.train.batch_size (16), or raise config.train.microbatches "
            "(1), or set config.model.remat ('none'); no checkpoint was saved yet\n",
        ),
        (KeyboardInterrupt(), 130, "", "\ninterrupted: the same command continues from the last checkpoint\n"),
    ],
    ids=["done", "failed", "mistake", "preempted", "memory", "interrupted"],
)
def test_each_end_of_a_job_has_its_exit_code_and_its_line(monkeypatch, capsys, tmp_path, end, code, stdout, stderr):
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


def test_a_process_ends_though_a_thread_does_not(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(main, "_SECONDS_TO_END", 0.01)
    monkeypatch.setattr(main.os, "_exit", lambda code: ended.set() if code == 2 else None)
    main._end_soon(2)
    assert ended.wait(10)
