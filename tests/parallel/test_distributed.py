"""The place of a process in its run, from its config and environment, and what stops its start."""

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.jobs.runs import ROOT, free_port
from uvit_jax.errors import UserError
from uvit_jax.parallel import hosts
from uvit_jax.parallel.distributed import DistributedConfig, find_place, start
from uvit_jax.parallel.launchers import Place

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "a[2-3]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_without_a_launcher_or_a_config_nothing_is_joined():
    assert find_place(DistributedConfig(), {}) is None
    assert find_place(DistributedConfig(start="off", coordinator="a:1"), SLURM) is None
    assert find_place(DistributedConfig(coordinator="a:1", num_processes=1), {}) is None
    start(DistributedConfig(), {})
    assert not hosts.are_several()
    assert hosts.is_first()


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
            "config.x.num_processes is missing (coordinator = a:1, and no launcher variable",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2},
            {},
            "config.x.process_id is missing (coordinator = a:1, num_processes = 2, and no launcher",
        ),
        (
            {"process_id": 0},
            {},
            "config.x.coordinator is missing (process_id = 0, and no launcher variable",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            {},
            "config.x.process_id is 2, expected 0 to 1: num_processes is 2",
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
def test_settings_out_of_range_or_missing_are_named(fields, environ, message):
    with pytest.raises(UserError) as caught:
        find_place(DistributedConfig(**fields), environ, prefix="config.x.")
    assert str(caught.value).startswith(message)


def test_a_port_in_use_is_refused_before_anything_is_started():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = DistributedConfig(coordinator=address, num_processes=2, process_id=0)
        with pytest.raises(
            UserError,
            match=rf"^config.distributed.coordinator is '{address}', expected a free port of",
        ):
            start(config, {}, prefix="config.distributed.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "message"),
    [
        (0, "error: not all 2 processes came to 127.0.0.1:{port} within 3 seconds"),
        (
            1,
            "error: config.x.coordinator is '127.0.0.1:{port}', where nobody answered "
            "within 3 seconds",
        ),
    ],
)
def test_others_that_never_come_end_the_start_with_one_sentence_after_the_time_limit(
    process, message
):
    port, began = free_port(), time.monotonic()
    program = (
        "import os; from uvit_jax.parallel import distributed; "
        "config = distributed.DistributedConfig(timeout=3); "
        "distributed.start(config, os.environ, prefix='config.x.')"
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
