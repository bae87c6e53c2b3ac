import pytest

from uvit_jax.errors import UserError
from uvit_jax.parallel import launchers
from uvit_jax.parallel.launchers import Place, launched, number_in

SRUN = {
    "SLURM_JOB_ID": "12345",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NODELIST": "node[007-010]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
MPIRUN = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://10.96.0.1,10.148.0.1:34911",
}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine without TPU chips and with four GPUs."""
    monkeypatch.setattr(launchers, "_has_tpu", lambda: False)
    monkeypatch.setattr(
        launchers.glob, "glob", lambda pattern: [f"/dev/nvidia{i}" for i in range(4)]
    )


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


def test_a_machine_without_a_launcher_is_alone():
    assert launched({}) is None


def test_srun_says_the_place_and_the_port_comes_from_the_job():
    # 61440 + 12345 % 4096; two tasks share the node's four GPUs.
    assert launched(SRUN) == Place("node007:61497", 8, 3, (2, 3))
    assert launched(SRUN | {"JAX_COORDINATOR_PORT": "1234"}).coordinator == "node007:1234"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("a[1,3],b", "a1"),
        ("a[01-04]", "a01"),
        ("r[2-3]n[5,7-9],x", "r2n5"),
        ("a-b.c", "a-b.c"),
    ],
)
def test_the_first_of_slurms_nodes_holds_process_0(nodes, first):
    assert launched(SRUN | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{first}:61497"


def test_an_interactive_shell_or_a_batch_script_is_no_task_of_several():
    # salloc's shell is a step of one task in an allocation of eight; sbatch's script is in no step
    # at all.
    assert launched(SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    assert (
        launched(
            without(
                SRUN, "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"
            )
        )
        is None
    )


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_LOCALID": "0"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, (1,)),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "CUDA_VISIBLE_DEVICES": "3"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
        ({"JAX_LOCAL_DEVICE_IDS": "0"}, None),
    ],
    ids=["a node each", "a GPU each", "its own GPU alone visible", "two visible", "said by hand"],
)
def test_tasks_of_one_node_share_its_gpus(changes, devices):
    assert launched(SRUN | changes).local_devices == devices


@pytest.mark.parametrize(
    ("bind", "devices"),
    [
        ("gres/gpu:per_task:2", None),
        ("gpu:per_task:2", None),
        ("gres/gpu:verbose,per_task:2", None),
        ("gres/gpu:mask:0x3,0xc", None),
        ("gres/nic:none+gres/gpu:map_gpu:0,1", None),
        ("gres/gpu:none", (1,)),
        ("gres/gpu:closest", (1,)),
        ("gres/nic:per_task:2", (1,)),
    ],
)
def test_gpus_that_slurm_gave_to_a_task_alone_are_all_taken(bind, devices):
    # --gpus-per-task=2 shows each of a node's tasks two GPUs of its own, always as 0 and 1.
    environ = SRUN | {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "SLURM_GPUS_PER_TASK": "2",
        "SLURMD_TRES_BIND": bind,
    }
    assert launched(environ).local_devices == devices


def test_what_slurm_gave_to_mpiruns_daemon_is_shared_by_its_processes():
    environ = MPIRUN | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURMD_TRES_BIND": "gres/gpu:per_task:2"}
    assert launched(environ).local_devices == (0,)


def test_mpirun_says_the_place_and_before_version_5_where_it_runs():
    # The job's number is above the lowest 12 bits.
    port = 61440 + (1314521088 >> 12) % 4096
    assert launched(MPIRUN) == Place(f"10.96.0.1:{port}", 4, 2, (0, 1))
    version_6 = "1314521088.0;tcp6://[fe80::b9b:ac5d,2620:10d::2]:43370"
    assert (
        launched(MPIRUN | {"OMPI_MCA_orte_hnp_uri": version_6}).coordinator
        == f"[fe80::b9b:ac5d]:{port}"
    )
    assert launched(without(MPIRUN, "OMPI_MCA_orte_hnp_uri")) == Place(None, 4, 2, (0, 1))
    assert launched(MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"}) is None


def test_processes_of_one_host_need_no_address_from_mpirun():
    on_one = without(MPIRUN, "OMPI_MCA_orte_hnp_uri") | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    assert launched(on_one).coordinator.startswith("127.0.0.1:")
    assert launched(on_one).local_devices == (0,)


@pytest.mark.parametrize(
    ("environ", "method"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, "gketpu"),
        ({}, "gcetpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, None),
        ({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}, None),
        ({"JAX_PLATFORMS": "tpu,cpu"}, "gcetpu"),
    ],
)
def test_a_tpu_host_asks_jax_and_any_other_does_not(monkeypatch, environ, method):
    assert launched(environ) is None
    monkeypatch.setattr(launchers, "_has_tpu", lambda: True)
    found = launched(environ)
    assert (found and found.method) == method


def test_what_should_be_a_number_is_named():
    assert number_in({}, "X") is None
    with pytest.raises(UserError, match=r"^X is '-1', expected a whole number$"):
        number_in({"X": "-1"}, "X")


# What mpirun's processes inherit inside a Slurm job of four nodes: the numbers of the daemon that
# srun started, one a node.
DAEMON = {
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NODELIST": "node[007-010]",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NODELIST": "node[008-010]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
HYDRA = {"PMI_SIZE": "8", "PMI_RANK": "5", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}


def test_mpiruns_numbers_go_before_those_of_the_daemon_that_slurm_started():
    ranks = MPIRUN | {
        "OMPI_COMM_WORLD_SIZE": "8",
        "OMPI_COMM_WORLD_RANK": "5",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    }
    port = 61440 + (1314521088 >> 12) % 4096
    assert launched(DAEMON | ranks) == Place(f"10.96.0.1:{port}", 8, 5, (2, 3))
    # Open MPI 5 says no host: process 0 is on the job's first node, which has no daemon of its own.
    version_5 = without(ranks, "OMPI_MCA_orte_hnp_uri") | {"PMIX_NAMESPACE": "prterun-node007-1@1"}
    found = launched(DAEMON | version_5)
    assert (found.num_processes, found.process_id) == (8, 5)
    assert found.coordinator.startswith("node007:")


def test_a_run_of_one_by_mpirun_is_no_task_of_its_daemon():
    assert (
        launched(DAEMON | MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"})
        is None
    )
    assert launched(DAEMON | {"PMI_SIZE": "1", "PMI_RANK": "0"}) is None


def test_mpich_says_the_place_inside_and_outside_of_slurm():
    assert launched(DAEMON | HYDRA) == Place("node007:61497", 8, 5, (2, 3))
    assert launched(HYDRA) == Place(None, 8, 5, (2, 3))
    assert launched(HYDRA | {"MPI_LOCALNRANKS": "8", "MPI_LOCALRANKID": "5"}) == Place(
        "127.0.0.1:61440", 8, 5, None
    )
    assert launched(
        {"PMI_SIZE": "4", "PMI_RANK": "1", "PMI_LOCAL_SIZE": "4", "PMI_LOCAL_RANK": "1"}
    ).local_devices == (1,)


def test_srun_gives_its_own_numbers_as_pmis_too():
    assert launched(SRUN | {"PMI_SIZE": "8", "PMI_RANK": "3"}) == launched(SRUN)
