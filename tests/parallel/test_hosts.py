"""Two processes on this machine, as two hosts, and a process on its own."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.jobs.runs import ROOT, ends, environment, free_port
from tests.parallel import two_hosts
from uvit_jax.errors import UserError
from uvit_jax.parallel import hosts
from uvit_jax.parallel.mesh import AXES
from uvit_jax.training.checkpoint import Checkpoints


def test_a_process_alone_agrees_with_itself_and_raises_its_own_errors():
    def fail():
        raise UserError("mine")

    hosts.agree({"a": 1})
    assert hosts.on_all(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(UserError, match=r"^mine$"):
        hosts.on_all(fail)


@pytest.fixture(scope="module")
def one() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)


@pytest.fixture(scope="module")
def answers(tmp_path_factory, one):
    """The answers of two processes with two devices each, and the folder they shared."""
    folder = tmp_path_factory.mktemp("hosts")
    batches, checkpoints = two_hosts.make_batches(one), Checkpoints(folder / "of_one")
    two_hosts.labels(one, batches)
    checkpoints.save(two_hosts.make_state(one, 5), batches)
    checkpoints.close()
    batches.close()
    port = free_port()
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.parallel.two_hosts",
                str(port),
                str(process),
                str(folder),
            ],
            cwd=ROOT,
            env=environment(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    for result in ends(processes, timeout=200):
        assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(2)], folder


def test_two_processes_know_their_places(answers):
    first, second = answers[0]
    assert (first["place"], second["place"]) == ([0, True, True, 4], [1, False, True, 4])
    assert first["secret"] == second["secret"]
    assert first["largest"] == second["largest"] == [1, 0]


def test_a_value_that_differs_is_named_on_both_with_its_process(answers):
    for answer in answers[0]:
        assert answer["alike"] == "None"
        assert answer["value"] == (
            "SharedError: the hosts disagree: config.train.batch_size is 64 on process 1 and 128 "
            "on process 0"
        )
        assert answer["absent"] == (
            "SharedError: the hosts disagree: config.model.new is absent on process 1 and 3 on "
            "process 0"
        )


def test_what_fails_on_one_is_raised_on_both(answers):
    first, second = answers[0]
    assert (first["own"], second["own"]) == ("0", "10")
    assert first["fault of 0"] == second["fault of 0"] == "SharedError: no file on 0"
    assert first["fault of 1"] == second["fault of 1"] == "SharedError: no file on 1 (process 1)"


def test_the_first_alone_is_asked_and_its_fault_is_raised_on_both(answers):
    first, second = answers[0]
    assert (first["first alone"], second["first alone"]) == (5, None)
    assert (
        first["fault of the first"] == second["fault of the first"] == "SharedError: no file on 0"
    )
    assert (first["no fault of 1"], second["no fault of 1"]) == ("0", "None")


def test_a_workdir_that_is_not_shared_is_refused_on_both(answers):
    both, folder = answers
    for process in both:
        assert (process["shared"], process["left"]) == ("None", [])
        assert process["unshared"].startswith(f"SharedError: {folder}/host1 on ")
        assert process["unshared"].endswith(
            "expected one on a file system that all hosts share (process 1)"
        )


@pytest.mark.parametrize("mesh", ["data", "interleaved", "tensor", "halves"])
def test_arrays_are_whole_and_batches_those_of_one_host_whichever_device_is_where(
    answers, one, mesh
):
    batches = two_hosts.make_batches(one)
    expected = two_hosts.labels(one, batches)
    batches.close()
    for answer in answers[0]:
        assert answer[mesh] == [np.arange(24).reshape(4, 6).tolist(), [0, 1, 2], [0, 1]]
        assert answer[f"{mesh} labels"] == expected


def test_checkpoints_of_one_process_and_of_two_go_on_in_the_other(answers, one):
    both, folder = answers
    batches = two_hosts.make_batches(one)
    stream = [two_hosts.labels(one, batches) for _ in range(3)]
    for process in both:
        assert process["restored"] == two_hosts.values(two_hosts.make_state(one, 5))
        assert process["restored labels"] == stream[1]
    checkpoints = Checkpoints(folder / "of_two")
    state = checkpoints.restore(two_hosts.make_state(one, 0), batches)
    checkpoints.close()
    assert two_hosts.values(state) == two_hosts.values(two_hosts.make_state(one, 6))
    assert two_hosts.labels(one, batches) == stream[2]
    batches.close()
