"""The logger of wandb with a stand-in for the package, and with the package where it is there."""

import logging
import sys
import types

import numpy as np
import pytest

from tests.jobs.digits_config import experiment
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import set_fields
from uvit_jax.experiment.saved_config import to_save
from uvit_jax.jobs import train
from uvit_jax.telemetry.loggers import wandb_run
from uvit_jax.telemetry.writers import MetricWriter, read_metrics

PICTURE = np.full((4, 4, 3), 7, np.uint8)


class Run:
    """A run of the stand-in: rows by step; `broken` makes it fail as a lost process does."""

    def __init__(self, step: int, **options):
        self.step, self.options, self.rows, self.broken = step, options, {}, False
        self.config, self.exit_code = Config(), None

    def log(self, values, step):
        if self.broken:
            raise ConnectionError("the pipe is gone")
        assert step >= self.step
        self.step = step
        self.rows.setdefault(step, {}).update(values)

    def finish(self, exit_code):
        self.exit_code = exit_code


class Config(dict):
    def update(self, values, allow_val_change):
        assert allow_val_change
        super().update(values)


@pytest.fixture
def wandb(monkeypatch):
    """The stand-in; `resumed_step` is where it says that a run goes on, `fails` modes that fail."""
    module = types.ModuleType("wandb")

    def init(**options):
        module.tried.append(options["mode"])
        if options["mode"] in module.fails:
            raise ConnectionError("no route to host\nsecond line")
        module.runs.append(Run(module.resumed_step, **options))
        return module.runs[-1]

    module.init, module.runs, module.tried, module.fails = init, [], [], ()
    module.resumed_step, module.torn_down = 0, 0
    module.Image = lambda image: ("image", image.shape)
    module.teardown = lambda: module.tried.append("teardown")
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return module


def writer(workdir, step=0, **options):
    config = to_save(experiment())
    return MetricWriter(workdir, step, loggers=("wandb",), config=config, **options)


def test_rows_hold_the_numbers_and_pictures_of_their_step_and_the_config_is_there(wandb, tmp_path):
    with writer(tmp_path / "digits") as log:
        log.write(10, {"loss": np.float32(0.5), "mfu": None})
        log.write_image("samples", 10, PICTURE)
        log.write_evaluation(10, {"fid": 3.0})
        log.write(20, {"loss": 0.25})
    (run,) = wandb.runs
    assert run.rows == {
        10: {"loss": 0.5, "samples": ("image", (4, 4, 3)), "fid": 3.0},
        20: {"loss": 0.25},
    }
    assert run.config["train"]["batch_size"] == experiment().train.batch_size
    assert (run.options["project"], run.options["name"]) == ("uvit-jax", "digits")
    assert (run.exit_code, run.options["dir"]) == (0, str(tmp_path / "digits"))
    assert not (tmp_path / "digits" / "tensorboard").exists()


def test_a_resumed_run_goes_on_in_the_same_run_without_rows_that_are_there(wandb, tmp_path):
    with writer(tmp_path) as log:
        log.write(10, {"loss": 0.5})
    wandb.resumed_step = 31  # wandb has rows up to 30, the checkpoint is of step 20
    with writer(tmp_path, 20) as log:
        for step in (30, 40):
            log.write(step, {"loss": 0.1})
    first, second = wandb.runs
    assert first.options["id"] == second.options["id"]
    assert second.options["resume"] == "allow"
    assert second.options["name"] is None  # a name given on wandb's page stays
    assert list(second.rows) == [40]
    with writer(tmp_path / "another"):
        assert wandb.runs[-1].options["id"] != first.options["id"]


def test_a_run_that_ends_with_an_error_is_marked_so(wandb, tmp_path):
    with pytest.raises(UserError), writer(tmp_path):
        raise UserError("the loss is nan")
    assert wandb.runs[0].exit_code == 1


@pytest.mark.parametrize(
    ("fails", "said", "rows"),
    [
        ((None,), "(no route to host): training goes on, 'wandb sync' can upload", 1),
        ((None, "offline"), "(no route to host): training goes on, without it", 0),
    ],
)
def test_a_wandb_that_cannot_be_reached_is_told_once_and_the_run_kept(
    wandb, tmp_path, caplog, fails, said, rows
):
    wandb.fails = fails
    with caplog.at_level(logging.WARNING), writer(tmp_path) as log:
        log.write(10, {"loss": 0.5})
    assert wandb.tried == [None, "teardown", "offline"]
    assert [said in record.getMessage() for record in caplog.records] == [True]
    assert len(wandb.runs) == rows
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_a_wandb_that_breaks_while_training_is_told_once(wandb, tmp_path, caplog):
    with caplog.at_level(logging.WARNING), writer(tmp_path) as log:
        wandb.runs[0].broken = True
        for step in (10, 20):
            log.write(step, {"loss": 0.5})
    assert [record.getMessage() for record in caplog.records] == [
        "wandb fails (the pipe is gone): training goes on without it"
    ]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_an_upload_that_never_ends_does_not_keep_the_job(wandb, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(wandb_run, "_SECONDS_TO_UPLOAD", 0.05)
    released = []
    with caplog.at_level(logging.WARNING), writer(tmp_path):
        waiting = wandb_run.threading.Event()
        wandb.runs[0].finish = lambda exit_code: released.append(waiting.wait(10))
    assert "wandb has not got all of the run: 'wandb sync' uploads" in caplog.text
    assert not released
    waiting.set()


def test_other_processes_and_other_loggers_leave_wandb_alone(wandb, tmp_path):
    with writer(tmp_path / "a", active=False), MetricWriter(tmp_path / "b"):
        pass
    assert not wandb.runs
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_missing_package_is_named_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError,
        match=r"^config\.train\.loggers has 'wandb', which needs .*: pip install 'uvit-jax\[wandb",
    ):
        train.run(experiment(train__loggers=("wandb",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loggers_are_named_by_a_flag():
    from configs import digits
    from uvit_jax.experiment.config import resolve

    def loggers(text):
        config = digits.get_config()
        set_fields(config, {"train.loggers": text})
        return resolve(config).train.loggers

    assert loggers("wandb, tensorboard") == ("wandb", "tensorboard")
    assert loggers("('wandb',)") == ("wandb",)
    assert loggers("") == ()
    assert experiment().train.loggers == ("tensorboard",)
    with pytest.raises(UserError, match=r"^config\.train\.loggers is 'wanb', .*mean 'wandb'\?\)$"):
        loggers("wanb")
    with pytest.raises(UserError, match=r"^config\.train\.loggers is 'wandb', expected a tuple of"):
        experiment(train__loggers="wandb")


def test_the_package_itself_keeps_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install 'uvit-jax[wandb]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 10):
        with writer(tmp_path, start) as log:
            log.write(start + 10, {"loss": 0.5})
            log.write_image("samples", start + 10, PICTURE)
    run_id = (tmp_path / "wandb_run_id.txt").read_text().strip()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))) == 2
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/media/images/*.png"))) == 2
