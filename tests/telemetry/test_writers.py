import json
import os
import struct
import time
import types

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from uvit_jax.errors import UserError
from uvit_jax.telemetry import writers
from uvit_jax.telemetry.writers import MetricWriter, read_metrics


def steps(path):
    return [line["step"] for line in read_metrics(path / "metrics.jsonl")]


def log(workdir, resume_step, up_to, every=10):
    with MetricWriter(workdir, resume_step) as writer:
        for step in range(resume_step + every, up_to + 1, every):
            writer.write(step, {"loss": 1 / step})


def events(workdir):
    """All events of a workdir, in order of creation; TFRecord's framing is read by hand."""
    found = []
    for file in sorted(
        (workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns
    ):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(workdir):
    return [
        (e.step, v.tag, v.simple_value)
        for e in events(workdir)
        for v in e.summary.value
        if v.HasField("simple_value")
    ]


def test_a_line_holds_the_step_and_the_keys_as_given(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        writer.write(
            50, {"loss": 0.25, "images": 6400, "lr": np.float32(0.5), "count": np.int64(3)}
        )
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(json.loads(line).items()) == [
        ("step", 50),
        ("loss", 0.25),
        ("images", 6400),
        ("lr", 0.5),
        ("count", 3),
    ]


def test_numbers_that_are_not_finite_become_null_and_the_line_stays_json(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        writer.write(1, {"loss": float("nan"), "grad_norm": np.float32("inf"), "mfu": None})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "grad_norm": None, "mfu": None}


def test_a_line_is_in_the_file_before_any_flush(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.write(10, {"loss": 1.0})
    assert steps(tmp_path) == [10]
    writer.close()


def test_resuming_drops_later_steps_and_leaves_one_line_a_step(tmp_path):
    log(tmp_path, 0, up_to=50)
    log(tmp_path, 20, up_to=40)
    assert steps(tmp_path) == [10, 20, 30, 40]


def test_a_step_already_in_the_file_is_not_written_again(tmp_path):
    for loss in (1.0, 2.0):
        with MetricWriter(tmp_path, 0) as writer:
            writer.write(0, {"loss": loss})
            writer.write(10, {"loss": loss})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 0, "loss": 1.0},
        {"step": 10, "loss": 2.0},
    ]


@pytest.mark.parametrize(
    "torn", [b'{"step": 30, "lo', b"{", b'{"step": 30, "tag": "\xc3', b"30", b"\0\0\0"]
)
def test_a_torn_last_line_is_dropped_on_reading_and_on_resuming(tmp_path, torn):
    log(tmp_path, 0, up_to=20)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert steps(tmp_path) == [10, 20]
    log(tmp_path, 20, up_to=40)
    assert steps(tmp_path) == [10, 20, 30, 40]


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    log(tmp_path, 0, up_to=20)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    log(tmp_path, 20, up_to=30)
    assert steps(tmp_path) == [10, 20, 30]


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_any_cut_of_the_file_resumes_to_one_line_a_step(tmp_path, cut):
    log(tmp_path, 0, up_to=40)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - cut])
    log(tmp_path, 10, up_to=40)
    assert steps(tmp_path) == [10, 20, 30, 40]


def test_the_old_file_stays_whole_when_the_rewrite_fails(tmp_path, monkeypatch):
    log(tmp_path, 0, up_to=50)

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        MetricWriter(tmp_path, 20)
    assert steps(tmp_path) == [10, 20, 30, 40, 50]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(
        UserError, match=r"metrics\.jsonl line 2 is 'hello'; expected a JSON object"
    ):
        MetricWriter(tmp_path, 2)


def test_steps_that_go_back_or_repeat_are_refused(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        writer.write(20, {"loss": 1.0})
        for step in (20, 10):
            with pytest.raises(ValueError, match=f"step {step} after step 20"):
                writer.write(step, {"loss": 1.0})
        with pytest.raises(ValueError, match="step"):
            writer.write(30, {"step": 30})


def test_an_inactive_writer_touches_nothing(tmp_path):
    with MetricWriter(tmp_path / "run", 0, active=False) as writer:
        writer.write(1, {"loss": 1.0})
        writer.write_image("grid", 1, np.zeros((2, 2, 3), np.uint8))
        writer.flush()
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_workdir_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file.*expected a writable workdir"):
        MetricWriter(tmp_path / "file", 0)


def test_reading_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*metrics\.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_every_number_becomes_a_tensorboard_scalar(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        writer.write(5, {"loss": 0.5, "images": 640, "mfu": None})
    assert scalars(tmp_path) == [(5, "loss", 0.5), (5, "images", 640.0)]


def test_images_become_tensorboard_events(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        writer.write_image("samples", 7, np.zeros((4, 6, 3), np.uint8))
        writer.write_image("grey", 7, np.zeros((4, 6, 1), np.uint8))
    values = [value for event in events(tmp_path) for value in event.summary.value]
    assert [(v.tag, v.image.height, v.image.width) for v in values] == [
        ("samples", 4, 6),
        ("grey", 4, 6),
    ]


def test_tensorboard_drops_steps_after_the_resumed_one(tmp_path):
    log(tmp_path, 0, up_to=30)
    log(tmp_path, 20, up_to=30)
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [1, 21]
    assert (
        len(list((tmp_path / "tensorboard").iterdir())) == 2
    )  # a restart within the second doesn't empty the first


def test_flush_leaves_every_event_on_disk(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step in range(1, 30):
        writer.write(step, {"loss": 1.0})
    writer.flush()
    assert len(scalars(tmp_path)) == 29
    writer.close()


def test_lines_are_synced_to_the_disk_every_ten_seconds_and_not_at_each(tmp_path, monkeypatch):
    now, synced = [0.0], set()
    monkeypatch.setattr(
        writers, "time", types.SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    )
    monkeypatch.setattr(
        writers.os, "fsync", lambda file: synced.add((now[0], os.fstat(file).st_ino))
    )
    with MetricWriter(tmp_path, 0) as writer:
        synced.clear()
        for step in range(1, 31):
            now[0] += 1.0
            writer.write(step, {"loss": 1.0})
        files = [tmp_path / "metrics.jsonl", *(tmp_path / "tensorboard").iterdir()]
        assert synced == {(at, file.stat().st_ino) for at in (10.0, 20.0, 30.0) for file in files}


def test_an_evaluation_has_a_line_of_its_own_beside_its_steps(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        writer.write_evaluation(10, {"fid": 4.0})
        writer.write(10, {"loss": 1.0})
        writer.write_evaluation(10, {"fid_guided": np.float64(2.0)})
        writer.write_evaluation(20, {"fid": 3.0})
        writer.write(20, {"loss": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "fid": 4.0},
        {"step": 10, "loss": 1.0},
        {"step": 10, "fid_guided": 2.0},
        {"step": 20, "fid": 3.0},
        {"step": 20, "loss": 0.5},
    ]
    assert (20, "fid", 3.0) in scalars(tmp_path)


def test_an_evaluation_that_is_there_is_not_written_again(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        assert not writer.has_evaluation(10, ["fid"])
        for fid in (4.0, 5.0):
            writer.write_evaluation(10, {"fid": fid})
        assert writer.has_evaluation(10, ["fid"])
        writer.write_evaluation(20, {"fid": 3.0})
    with MetricWriter(tmp_path, 10) as writer:
        assert writer.has_evaluation(10, ["fid"])
        assert not writer.has_evaluation(20, ["fid"])  # of a step that the run lost
        assert not writer.has_evaluation(10, ["fid", "kid"])
        writer.write_evaluation(10, {"fid": 6.0})
        writer.write(10, {"loss": 1.0})  # an evaluation is not the step's own line
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "fid": 4.0},
        {"step": 10, "loss": 1.0},
    ]


def test_an_evaluation_is_on_the_disk_at_once_and_an_inactive_writer_has_none(tmp_path):
    writer = MetricWriter(tmp_path / "run", 0)
    writer.write_evaluation(10, {"fid": 4.0})
    assert scalars(tmp_path / "run") == [(10, "fid", 4.0)]
    writer.close()
    with MetricWriter(tmp_path / "none", 0, active=False) as inactive:
        inactive.write_evaluation(10, {"fid": 4.0})
        assert not inactive.has_evaluation(10, ["fid"])
    assert not (tmp_path / "none").exists()
