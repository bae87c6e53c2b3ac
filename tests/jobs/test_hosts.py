"""Jobs on two hosts give what they give on one, go on where the other number of hosts stopped, and
end together.
"""

import json
import pathlib
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.jobs.evaluate_runs import write_run
from tests.jobs.images import write_clip, write_coco, write_kl
from tests.jobs.runs import (
    ROOT,
    assert_same_bits,
    command,
    ends,
    environment,
    final_state,
    run_hosts,
    start_hosts,
    tiny_experiment,
)
from tests.jobs.test_text import SMALL as TEXT
from uvit_jax.telemetry.writers import read_metrics

pytestmark = pytest.mark.slow

STEPS = 10
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (1, 1, 8)}


def flags(**fields) -> list[str]:
    return [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]


def train_flags(workdir: pathlib.Path, mesh: str = "data", **fields) -> list[str]:
    data, fsdp, tensor = MESHES[mesh]
    own = {"optimizer__warmup_steps": 0, "train__steps": STEPS, "train__save_every": STEPS // 2}
    split = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
    # Eight heads, so that each of eight devices has one.
    return [f"--workdir={workdir}", *flags(model__num_heads=8, **(own | split | fields))]


def on_one_host(*arguments: str, devices: int = 8, expect: int = 0) -> subprocess.CompletedProcess:
    result = subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == expect, result.stderr[-3000:]
    return result


def on_two_hosts(
    *arguments: str, devices_each: int = 4, **options
) -> list[subprocess.CompletedProcess]:
    results = run_hosts(2, devices_each, *arguments, **options)
    for result in results:
        assert result.returncode == 0, result.stderr[-3000:]
    return results


def assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Every weight to 1e-5 of its array's largest: hosts add up in another order than devices of
    one process.
    """
    assert one.keys() == other.keys()
    assert one["step"] == other["step"]
    for name in one:
        if name.startswith(("params", "ema")):
            np.testing.assert_allclose(
                other[name], one[name], rtol=1e-5, atol=1e-5 * np.abs(one[name]).max(), err_msg=name
            )


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """The same run on one host of eight devices and, in three meshes, on two hosts of four."""
    root = tmp_path_factory.mktemp("hosts")
    on_one_host(*train_flags(root / "one"))
    for mesh in MESHES:
        results = on_two_hosts(*train_flags(root / mesh, mesh))
        assert f"to step {STEPS}" in results[0].stdout.splitlines()[-1]
    return root


def stopped_halfway(workdir: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    shutil.copytree(workdir, to)
    shutil.rmtree(to / "checkpoints" / str(STEPS))
    return to


@pytest.mark.parametrize("mesh", MESHES)
def test_two_hosts_give_the_losses_and_weights_of_one(root, mesh):
    assert_close(final_state(root / "one"), final_state(root / mesh))
    one, two = (read_metrics(root / name / "metrics.jsonl") for name in ("one", mesh))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    np.testing.assert_allclose(
        [line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-5
    )


def test_a_checkpoint_of_one_host_goes_on_on_two_in_another_mesh(root, tmp_path):
    workdir = stopped_halfway(root / "one", tmp_path / "run")
    results = on_two_hosts(*train_flags(workdir, "fsdp"))
    assert "from step 5" in results[0].stderr
    assert_close(final_state(root / "one"), final_state(workdir))


def test_a_checkpoint_of_two_hosts_goes_on_on_one_in_another_mesh(root, tmp_path):
    workdir = stopped_halfway(root / "tensor", tmp_path / "run")
    assert "from step 5" in on_one_host(*train_flags(workdir, "data")).stderr
    assert_close(final_state(root / "one"), final_state(workdir))


def test_one_host_writes_and_its_workdir_is_that_of_one(root):
    def names(workdir):
        return {
            str(path.relative_to(workdir))
            for path in workdir.rglob("*")
            if path.is_file()
            and "checkpoints" not in path.parts
            and "tensorboard" not in path.parts
        }

    assert names(root / "data") == names(root / "one")
    assert len(list((root / "data" / "tensorboard").iterdir())) == 1
    # Who goes on from the workdir alone looks for no coordinator.
    saved = json.loads((root / "data" / "config.json").read_text())["distributed"]
    assert saved == {
        "start": "auto",
        "coordinator": "",
        "num_processes": 0,
        "process_id": -1,
        "timeout": 300,
    }


def test_two_hosts_sample_what_one_does(root, tmp_path):
    def drawn(out, run):
        run(
            "--job=sample",
            *train_flags(root / "one"),
            *flags(sample__format="npz", sample__out=out),
        )
        return np.load(out / "samples.npz")["images"].astype(int)

    assert (
        np.abs(drawn(tmp_path / "one", on_one_host) - drawn(tmp_path / "two", on_two_hosts)).max()
        <= 1
    )


def test_captions_are_prepared_learned_and_asked_for_on_two_hosts_as_on_one(tmp_path):
    write_coco(tmp_path / "coco")
    write_kl(tmp_path / "kl.safetensors")
    write_clip(tmp_path / "clip")
    own = {
        "autoencoder.name": tmp_path / "kl.safetensors",
        "text_encoder.name": tmp_path / "clip",
        "text_encoder.tokenizer": tmp_path / "clip" / "merges.txt.gz",
        "prepare.source": tmp_path / "coco",
        # Both learn from what one host made.
        "data.source": tmp_path / "data_one",
        "prepare.images_per_shard": 2,
        "sample.prompts": "a red bus;two cats",
        "sample.format": "npz",
    }
    common = flags(**(TEXT | own))
    made, images = {}, {}
    for name, run in (
        ("one", lambda *a: on_one_host(*a, devices=1)),
        ("two", lambda *a: on_two_hosts(*a, devices_each=1)),
    ):
        out = tmp_path / f"data_{name}"
        run("--job=prepare", *common, *flags(prepare__out=out))
        made[name] = {
            str(path.relative_to(out)): path.read_bytes()
            for path in out.rglob("*")
            if path.is_file()
        }
        # The second begins with the first's weights.
        start = [] if name == "one" else flags(init_from=tmp_path / "run_one")
        run(*common, *start, f"--workdir={tmp_path / f'run_{name}'}")
        where = (f"--workdir={tmp_path / 'run_one'}", *flags(sample__out=tmp_path / f"out_{name}"))
        run("--job=sample", *common, *where)
        images[name] = np.load(tmp_path / f"out_{name}" / "samples.npz")["images"].astype(int)
    assert made["one"] == made["two"]
    assert np.abs(images["one"] - images["two"]).max() <= 1


def test_two_hosts_evaluate_as_one_does_and_one_of_them_writes(tmp_path):
    run, name = write_run(tmp_path / "run", tiny_experiment()), "own_feature_fd"
    common = flags(
        evaluate__num_samples=50,
        evaluate__num_features=300,
        evaluate__save="npz",
        sample__batch_size=16,
    )
    asked = {"drawn": {}, "swept": {"evaluate__sweep": "guidance=0,1", "evaluate__metrics": "fid"}}
    reports, images = {}, {}
    for where, start in (("one", on_one_host), ("two", on_two_hosts)):
        shutil.copytree(run, tmp_path / where)  # each makes a reference of its own
        for what, fields in asked.items():
            out = tmp_path / f"{where}_{what}"
            given = (f"--workdir={tmp_path / where}", *common, *flags(evaluate__out=out, **fields))
            results = start("--job=evaluate", *given)
            if where == "two":
                assert [" own_feature_fd " in result.stdout for result in results] == [True, False]
        reports[where] = json.loads((tmp_path / f"{where}_drawn" / "evaluation.json").read_text())
        images[where] = np.load(tmp_path / f"{where}_drawn" / "samples.npz")["arr_0"]
        # What samples are found is scored by both together, too.
        found = flags(
            evaluate__samples=tmp_path / "one_drawn" / "samples.npz",
            evaluate__out=tmp_path / f"{where}_found",
        )
        start("--job=evaluate", f"--workdir={tmp_path / where}", *common, *found)
    assert reports["one"]["samples"] == reports["two"]["samples"]
    assert np.abs(images["one"].astype(int) - images["two"]).max() <= 1
    one, two = (
        json.loads((tmp_path / f"{where}_found" / "evaluation.json").read_text())["metrics"]
        for where in reports
    )
    assert one.keys() == two.keys()
    for metric, value in one.items():
        np.testing.assert_allclose(two[metric], value, rtol=1e-8, err_msg=metric)
    swept = [
        json.loads((tmp_path / f"{where}_swept" / "sweep.json").read_text())["points"]
        for where in reports
    ]
    np.testing.assert_allclose(*([point[name] for point in points] for points in swept), rtol=1e-3)
    assert (tmp_path / "two_swept" / "sweep.png").exists()


def test_hosts_that_disagree_on_the_config_end_before_anything_is_made(tmp_path):
    first, second = start_hosts(2, 1, f"--workdir={tmp_path / 'run'}"), []
    # The second is started again with another config, in the first one's place.
    first[1].kill()
    first[1].wait()
    second = [*first[1].args, "--config.train.batch_size=32"]
    other = subprocess.Popen(
        second,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    results = ends([first[0], other])
    sentence = (
        "error: the hosts disagree: config.train.batch_size is 32 on process 1 and 16 on "
        "process 0\n"
    )
    assert [result.returncode for result in results] == [2, 2]
    assert [result.stderr for result in results] == [sentence, f"process 1: {sentence}"]
    assert not (tmp_path / "run").exists()


def until_logged(processes: list, workdir: pathlib.Path) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if (workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").read_text():
            return
        time.sleep(0.05)
    raise AssertionError(ends(processes)[0].stderr[-3000:])


LONG = {"train__steps": 60, "train__save_every": 20, "train__log_every": 5}


def test_a_sigterm_to_one_host_stops_both_and_the_run_ends_with_the_same_bits(tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    on_two_hosts(f"--workdir={straight}", *flags(**LONG), devices_each=1)
    processes = start_hosts(2, 1, f"--workdir={stopped}", *flags(**LONG))
    until_logged(processes, stopped)
    processes[1].send_signal(signal.SIGTERM)
    results = ends(processes)
    assert [result.returncode for result in results] == [143, 143]
    newest = max(int(path.name) for path in (stopped / "checkpoints").iterdir())
    assert 5 < newest < 60
    told = f"preempted at step {newest}: the checkpoint is saved, the same command continues"
    assert results[0].stderr.splitlines()[-1] == told
    assert "preempted" not in results[1].stderr
    on_two_hosts(f"--workdir={stopped}", *flags(**LONG), devices_each=1)
    assert_same_bits(final_state(stopped), final_state(straight))
    assert [line["step"] for line in read_metrics(stopped / "metrics.jsonl")] == list(
        range(5, 61, 5)
    )


@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_is_lost_ends_the_other(tmp_path, lost):
    processes = start_hosts(
        2, 1, f"--workdir={tmp_path}", *flags(**(LONG | {"train__steps": 100_000}))
    )
    until_logged(processes, tmp_path)
    processes[lost].kill()
    assert ends(processes, timeout=150)[1 - lost].returncode not in (0, None)
