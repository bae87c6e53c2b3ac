"""launch/slurm.sh with stand-ins for srun and scontrol: when it restarts, requeues or ends."""

import json
import pathlib
import shlex
import signal
import subprocess

import pytest

from tests.launch.programs import executable, workers_programs

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ("--config", "configs/imagenet512.py")

# srun, as far as tasks and their signals go: flags are dropped, SIGTERM is handed on, the largest
# exit code comes out.
SRUN = """#!/bin/bash
echo "srun $*" >>"$STAND_IN/slurm.log"
while [[ $1 == --* ]]; do shift; done
tasks=() largest=0
trap 'kill -TERM "${tasks[@]}"' TERM
for ((i = 0; i < TASKS; i++)); do HOME=$STAND_IN/worker$i "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do
  until wait $task; code=$?; ! kill -0 $task 2>/dev/null; do :; done
  largest=$((code > largest ? code : largest))
done
exit $largest
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$STAND_IN/slurm.log"
[[ $* != *show* ]] || echo "JobId=7 PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=$(cat "$STAND_IN/preempted")"
"""  # noqa: E501


class Cluster:
    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        workers_programs(folder / "unused", folder)
        executable(folder / "bin" / "python", (folder / "python").read_text())
        executable(folder / "bin" / "srun", SRUN)
        executable(folder / "bin" / "scontrol", SCONTROL)
        executable(folder / "uvit_jax" / "main.py", "")
        (folder / "launch").symlink_to(ROOT / "launch")
        self.environ = {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "TASKS": "1",
            "STAND_IN": str(folder),
            "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(folder),
            "UVIT_VENV": "none",
            "UVIT_POLL_SECONDS": "0",
        }
        self.goes("0")

    def goes(self, exits: str, preempted: str = "None") -> None:
        (self.folder / "exits").write_text(exits)
        (self.folder / "preempted").write_text(preempted)

    def submit(self, *args: str) -> subprocess.Popen[str]:
        command = ["bash", str(ROOT / "launch" / "slurm.sh"), *args]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environ, stdout=pipe, stderr=pipe, text=True)

    def run(self, *args: str) -> tuple[int, str, str]:
        job = self.submit(*args)
        out, err = job.communicate(timeout=60)
        return job.returncode, out, err

    @property
    def log(self) -> list[str]:
        path = self.folder / "slurm.log"
        return path.read_text().splitlines() if path.exists() else []

    def starts(self) -> list[list[str]]:
        path = self.folder / "program_worker0.jsonl"
        return (
            [json.loads(line)["argv"] for line in path.read_text().splitlines()]
            if path.exists()
            else []
        )


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


def test_the_program_gets_the_arguments_as_they_are(cluster):
    args = (*CONFIG, "--config.sample.prompts=it's a cat; $HOME *")
    code, out, err = cluster.run(*args)
    assert code == 0, err
    assert cluster.starts() == [["-m", "uvit_jax.main", *args]]
    assert out == "worker0 start 1\nthe last line\n"
    assert cluster.log[0].startswith(
        "srun --kill-on-bad-exit=0 bash launch/slurm_task.sh python -m uvit_jax.main"
    )


def test_a_dry_run_prints_the_command_and_runs_none(cluster):
    args = (*CONFIG, "--config.sample.prompts=it's a cat")
    del cluster.environ["SLURM_JOB_ID"]
    code, out, _ = cluster.run("--dry-run", *args)
    assert code == 0
    assert shlex.split(out)[-len(args) :] == list(args)
    assert out.startswith("srun ")
    assert not cluster.log


def test_the_time_limit_saves_and_goes_back_into_the_queue(cluster):
    cluster.goes("hang")
    job = cluster.submit(*CONFIG)
    assert job.stdout is not None
    assert job.stdout.readline() == "worker0 start 1\n"
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=60)
    assert out == "preempted: the checkpoint is saved\n"
    assert job.returncode == 143
    assert cluster.log[-1] == "scontrol requeue 7"


@pytest.mark.parametrize(
    ("preempted", "requeued"), [("2026-01-01T00:00:00", True), ("None", False)]
)
def test_of_sigterm_a_preemption_goes_back_into_the_queue_and_scancel_does_not(
    cluster, preempted, requeued
):
    cluster.goes("hang", preempted)
    job = cluster.submit(*CONFIG)
    assert job.stdout is not None
    job.stdout.readline()
    subprocess.run(
        ["pkill", "-TERM", "-P", str(job.pid), "-f", "srun"], check=True
    )  # what Slurm does: to the step
    job.communicate(timeout=60)
    assert job.returncode == 143
    assert ("scontrol requeue 7" in cluster.log) == requeued


def test_a_crash_just_before_the_time_limit_is_not_started_again_here_but_after_the_queue(cluster):
    cluster.goes("1")
    # The notice comes while the script waits to start the program again: there is no program to
    # hand it on to.
    executable(cluster.folder / "bin" / "sleep", "#!/bin/bash\nkill -USR1 $PPID\n")
    assert cluster.run(*CONFIG)[0] == 143
    assert len(cluster.starts()) == 1
    assert cluster.log[-1] == "scontrol requeue 7"


def test_a_crash_while_saving_at_the_time_limit_goes_back_into_the_queue(cluster):
    cluster.goes("hang1")
    job = cluster.submit(*CONFIG)
    assert job.stdout is not None
    job.stdout.readline()
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=60)
    assert job.returncode == 143
    assert len(cluster.starts()) == 1
    assert cluster.log[-1] == "scontrol requeue 7"


def test_crashes_are_started_again_a_bounded_number_of_times(cluster):
    cluster.goes("1 1 0")
    assert cluster.run(*CONFIG)[0] == 0
    assert len(cluster.starts()) == 3
    cluster.goes("1")
    assert cluster.run(*CONFIG)[0] == 1
    assert len(cluster.starts()) == 3 + 4


def test_a_mistake_of_the_users_is_not_started_again(cluster):
    cluster.goes("2")
    assert cluster.run(*CONFIG)[0] == 2
    assert len(cluster.starts()) == 1
    assert len(cluster.log) == 1


def test_a_mistake_that_one_task_tells_while_the_others_are_aborted_counts_as_one(cluster):
    cluster.environ["TASKS"] = "3"
    cluster.goes("134@worker1=2")
    assert cluster.run(*CONFIG)[0] == 2
    assert len(cluster.starts()) == 1


@pytest.mark.parametrize(
    ("args", "environ", "says"),
    [
        (("--job", "train"), {}, "--config is missing"),
        (CONFIG, {"SLURM_JOB_ID": ""}, "this is not a Slurm job"),
        (CONFIG, {"SLURM_SUBMIT_DIR": "/"}, "/ is not a checkout of uvit_jax"),
        (CONFIG, {"UVIT_VENV": "missing"}, "there is no virtual environment missing"),
        (
            CONFIG,
            {"UVIT_MAX_RESTARTS": "often"},
            "UVIT_MAX_RESTARTS is 'often', expected a whole number from 0",
        ),
    ],
)
def test_a_mistake_is_one_sentence(cluster, args, environ, says):
    cluster.environ.update(environ)
    code, _, err = cluster.run(*args)
    assert code == 2
    assert says in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert not cluster.log


def test_every_task_sees_all_gpus_of_its_node():
    """JAX takes the GPU numbered SLURM_LOCALID, so each task must see all GPUs of its node."""
    lines = (ROOT / "launch" / "slurm.sh").read_text().splitlines()
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in lines
        if line.startswith("#SBATCH")
    )
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert not {"gpus-per-task", "gpu-bind"} & options.keys()
    assert options["signal"].startswith("B:USR1@")
