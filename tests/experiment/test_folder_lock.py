"""One job at a time in a folder, whatever ends the others."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.jobs.runs import ROOT
from uvit_jax.errors import UserError
from uvit_jax.experiment import folder_lock
from uvit_jax.experiment.folder_lock import FILE_NAME, locked

# Another process that holds the lock of a folder, as a job does, until it is told to end.
_HOLDER = """
import fcntl, json, os, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
fcntl.flock(lock, fcntl.LOCK_EX)
holder = {"host": sys.argv[2], "pid": os.getpid(), "job": "train", "since": "noon"}
os.write(lock, json.dumps(holder).encode())
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(folder_lock, "SECONDS_TO_WAIT", {"here": 0.3, "elsewhere": 0.3})


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    line = [sys.executable, "-c", _HOLDER, str(tmp_path / FILE_NAME), socket.gethostname()]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with process:  # closes its pipes
        yield process
        process.kill()


def test_a_folder_in_use_is_refused_by_one_sentence_that_names_who_uses_it(
    tmp_path, holder, impatient
):
    where = rf"\(process {holder.pid} on {socket.gethostname()}, since noon\)"
    with (
        pytest.raises(
            UserError,
            match=rf"^{tmp_path} is in use by the job train {where}, expected one job at a time",
        ),
        locked(tmp_path, "train"),
    ):
        pass
    assert (tmp_path / FILE_NAME).exists()


def test_a_killed_job_leaves_no_lock(tmp_path, holder):
    holder.kill()
    with locked(tmp_path, "sample"):  # at once, as a launcher starts it again
        assert json.loads((tmp_path / FILE_NAME).read_text())["pid"] == os.getpid()


def test_a_job_waits_a_little_for_the_one_before_it_to_end(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(folder_lock, "say_once", lambda message: holder.stdin.close())
    with locked(tmp_path, "train"):
        assert holder.wait() == 0


def test_nothing_is_left_in_the_folder_and_it_can_be_locked_again(tmp_path):
    for _ in range(2):
        with locked(tmp_path, "train"):
            assert os.listdir(tmp_path) == [FILE_NAME]
        assert os.listdir(tmp_path) == []


def test_one_process_has_no_folder_twice(tmp_path, impatient):
    with (
        locked(tmp_path, "train"),
        pytest.raises(UserError, match=rf"in use by the job train \(process {os.getpid()} on"),
        locked(tmp_path, "train"),
    ):
        pass


def test_children_keep_no_lock(tmp_path):
    # As a job whose worker processes, forked and started, live longer than it.
    script = f"""
import os, pathlib, signal, subprocess, sys, time, types
# A run of one host, without the seconds that importing jax takes.
alone = types.SimpleNamespace(on_all=lambda f, *a: f(*a), on_first=lambda f, *a: f(*a))
sys.modules["uvit_jax.parallel.hosts"] = sys.modules["uvit_jax.parallel"] = alone
alone.hosts = alone
from uvit_jax.experiment.folder_lock import locked
with locked(pathlib.Path({str(tmp_path)!r}), "train"):
    child = os.fork()
    if not child:
        time.sleep(60)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    started = subprocess.Popen(sleep, stdout=subprocess.DEVNULL)
    print(child, started.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    children = [int(pid) for pid in process.stdout.readline().split()]
    process.wait()
    try:
        began = time.monotonic()
        with locked(tmp_path, "train"):
            assert time.monotonic() - began < 5
        assert len(children) == 2
        assert all(os.path.exists(f"/proc/{pid}") for pid in children if os.path.exists("/proc"))
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_said_once_and_used(tmp_path, monkeypatch, number):
    def flock(lock, operation):
        raise OSError(number, os.strerror(number))

    told = []
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(folder_lock, "say_once", told.append)
    with locked(tmp_path, "train"):
        pass
    assert told == [f"{tmp_path} is on a file system without locks: run one job at a time there"]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("error", [None, FileNotFoundError("metrics.jsonl")])
def test_a_folder_that_is_removed_meanwhile_is_told(tmp_path, again, error):
    folder = tmp_path / "run"
    folder.mkdir()

    @locked(folder, "train")
    def job():
        shutil.rmtree(folder)
        if again:  # by a file written into it, with its parents
            folder.mkdir()
        if error:
            raise error

    with pytest.raises(
        UserError, match=rf"^{folder} was removed .* while the job train wrote to it"
    ):
        job()


def test_the_first_host_alone_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock.hosts, "is_first", lambda: False)
    with locked(tmp_path, "train"):
        assert os.listdir(tmp_path) == []
