"""Two processes on this machine, as two hosts; and what each makes of its config and its
environment beforehand.
"""

import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.jobs.runs import ROOT, ends, environment, free_port
from tests.parallel import two_hosts
from uvit_jax.errors import UserError
from uvit_jax.parallel import hosts
from uvit_jax.parallel.hosts import DistributedConfig, find_place
from uvit_jax.parallel.launchers import Place
from uvit_jax.parallel.mesh import AXES
from uvit_jax.training.checkpoint import Checkpoints

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "a[2-3]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_without_a_word_of_others_nothing_is_joined():
    assert find_place(DistributedConfig(), {}) is None
    assert find_place(DistributedConfig(start="off", coordinator="a:1"), SLURM) is None
    assert find_place(DistributedConfig(coordinator="a:1", num_processes=1), {}) is None
    hosts.start(DistributedConfig(), {})
    assert not hosts.are_several()
    assert hosts.is_first()


def test_a_process_alone_agrees_with_itself_and_raises_its_own_errors():
    def fail():
        raise UserError("mine")

    hosts.agree({"a": 1})
    assert hosts.on_all(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(UserError, match=r"^mine$"):
        hosts.on_all(fail)


def test_the_config_goes_before_jaxs_variables_and_those_before_the_launchers():
    variables = {"JAX_COORDINATOR_ADDRESS": "b:2", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}
    assert find_place(DistributedConfig(), SLURM) == Place("a2:61447", 2, 1)
    assert find_place(DistributedConfig(), variables) == Place("b:2", 4, 0)
    assert find_place(DistributedConfig(process_id=3), variables | SLURM) == Place("b:2", 4, 3)
    assert find_place(DistributedConfig(coordinator="c:3"), SLURM) == Place("c:3", 2, 1)
    assert find_place(
        DistributedConfig(coordinator="c:3", num_processes=9, process_id=8), {}
    ) == Place("c:3", 9, 8)


@pytest.mark.parametrize(
    ("fields", "environ", "message"),
    [
        ({"start": "on"}, {}, "start is 'on', expected 'auto' or 'off'"),
        ({"coordinator": "host"}, {}, "coordinator is 'host', expected 'host:port' of process 0"),
        ({"num_processes": -1}, {}, "num_processes is -1, expected at least 1"),
        ({"process_id": -2}, {}, "process_id is -2, expected at least 0"),
        ({"timeout": 0}, {}, "timeout is 0, expected at least 1 second"),
        (
            {"coordinator": "a:1"},
            {},
            "config.distributed.num_processes is not given and nothing else says it, but "
            "coordinator = a:1",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2},
            {},
            "config.distributed.process_id is not given and nothing else says it, but coordinator "
            "= a:1, num_proc",
        ),
        (
            {"process_id": 0},
            {},
            "config.distributed.coordinator is not given and nothing else says it, but process_id",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            {},
            "config.distributed.process_id is 2, expected 0 to 1: num_processes is 2",
        ),
        ({}, {"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID is 'first', expected a whole number"),
        (
            {},
            SLURM | {"JAX_COORDINATOR_ADDRESS": "head"},
            "JAX_COORDINATOR_ADDRESS is 'head', expected 'host:port' of process 0",
        ),
        (
            {"num_processes": 2, "process_id": 1},
            {"JAX_COORDINATOR_ADDRESS": "head:port"},
            "JAX_COORDINATOR_ADDRESS is 'head:port', expected 'host:port' of process 0",
        ),
    ],
)
def test_settings_that_cannot_be_are_named(fields, environ, message):
    with pytest.raises(UserError) as caught:
        find_place(DistributedConfig(**fields), environ)
    assert str(caught.value).startswith(message)


def test_a_port_in_use_is_told_before_anything_is_started():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = DistributedConfig(coordinator=address, num_processes=2, process_id=0)
        with pytest.raises(
            UserError,
            match=rf"^config.distributed.coordinator is '{address}', expected a free port of",
        ):
            hosts.start(config, {})


@pytest.fixture(scope="module")
def one() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)


@pytest.fixture(scope="module")
def answers(tmp_path_factory, one):
    """What each of two processes of two devices answered, and the folder they shared."""
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


def test_a_value_that_differs_is_told_on_both_with_its_name_and_its_process(answers):
    for told in answers[0]:
        assert told["alike"] == "None"
        assert told["value"] == (
            "SharedError: the hosts disagree: config.train.batch_size is 64 on process 1 and 128 "
            "on process 0"
        )
        assert told["absent"] == (
            "SharedError: the hosts disagree: config.model.new is absent on process 1 and 3 on "
            "process 0"
        )


def test_what_fails_on_one_is_raised_on_both(answers):
    first, second = answers[0]
    assert (first["own"], second["own"]) == ("0", "10")
    assert first["fault of 0"] == second["fault of 0"] == "SharedError: no file on 0"
    assert first["fault of 1"] == second["fault of 1"] == "SharedError: no file on 1 (process 1)"


def test_a_workdir_that_is_not_shared_is_told_on_both(answers):
    told, folder = answers
    for process in told:
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
    for told in answers[0]:
        assert told[mesh] == [np.arange(24).reshape(4, 6).tolist(), [0, 1, 2], [0, 1]]
        assert told[f"{mesh} labels"] == expected


def test_checkpoints_of_one_process_and_of_two_go_on_in_the_other(answers, one):
    told, folder = answers
    batches = two_hosts.make_batches(one)
    stream = [two_hosts.labels(one, batches) for _ in range(3)]
    for process in told:
        assert process["restored"] == two_hosts.values(two_hosts.make_state(one, 5))
        assert process["restored labels"] == stream[1]
    checkpoints = Checkpoints(folder / "of_two")
    state = checkpoints.restore(two_hosts.make_state(one, 0), batches)
    checkpoints.close()
    assert two_hosts.values(state) == two_hosts.values(two_hosts.make_state(one, 6))
    assert two_hosts.labels(one, batches) == stream[2]
    batches.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "message"),
    [
        (0, "error: not all 2 processes came to 127.0.0.1:{port} within 3 seconds"),
        (
            1,
            "error: config.distributed.coordinator is '127.0.0.1:{port}', where nobody answered "
            "within 3 seconds",
        ),
    ],
)
def test_others_that_never_come_are_told_in_one_sentence_after_the_time_limit(process, message):
    port, began = free_port(), time.monotonic()
    program = (
        "import os; from uvit_jax.parallel import hosts; "
        "hosts.start(hosts.DistributedConfig(timeout=3), os.environ)"
    )
    variables = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(process),
    }
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stderr.startswith(message.format(port=port))
    assert result.stderr.count("\n") == 1
    assert 3 <= time.monotonic() - began < 60
