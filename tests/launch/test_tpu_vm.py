"""launch/tpu_vm.sh against a stand-in for gcloud: its requests, and its answers to failures."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.programs import executable, workers_programs

ROOT = pathlib.Path(__file__).parents[2]
STAND_IN = pathlib.Path(__file__).with_name("gcloud_stand_in.py")
FLAGS = (
    "--name",
    "run1",
    "--type",
    "v5litepod-16",
    "--zone",
    "us-west4-a",
    "--bucket",
    "gs://pictures",
)
CONFIG = ("--config", "configs/imagenet512.py")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> pathlib.Path:
    """A committed checkout of the launchers and of little more."""
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "launch", checkout / "launch")
    for name in (
        "uvit_jax/__init__.py",
        "configs/imagenet512.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text(f"{name}\n")
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    return checkout


def git(folder: pathlib.Path, *command: str) -> str:
    config = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", "-C", str(folder), *config, *command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


class Cloud:
    """The stand-in's folder, and the launcher run against it."""

    def __init__(self, folder: pathlib.Path, checkout: pathlib.Path):
        self.folder, self.checkout = folder, checkout
        executable(
            folder / "bin" / "gcloud", f'#!/bin/bash\nexec {sys.executable} -S -E {STAND_IN} "$@"\n'
        )
        workers_programs(folder / "bin", folder)
        self.environ = {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "STAND_IN": str(folder),
            "UVIT_POLL_SECONDS": "0",
            "UVIT_FOLLOW_SECONDS": "20",
            "UVIT_SETTLE_SECONDS": "30",
            "UVIT_MOUNT": str(folder / "bucket"),
        }
        self.goes()

    def goes(self, exits: str = "0", **scenario) -> None:
        (self.folder / "exits").write_text(exits)
        (self.folder / "scenario.json").write_text(json.dumps(scenario))

    def launch(
        self, *args: str, flags: tuple[str, ...] = FLAGS, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        command = [
            "bash",
            str(self.checkout / "launch" / "tpu_vm.sh"),
            *args[:1],
            *flags,
            *args[1:],
        ]
        return subprocess.run(
            command,
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run(self, *flags: str, args: tuple[str, ...] = CONFIG) -> subprocess.CompletedProcess[str]:
        return self.launch("run", *flags, "--", *args)

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def verbs(self) -> list[str]:
        """Verbs of the calls in their order: create, describe, scp, install, start, follow, ..."""
        commands = [
            call[call.index("--command") + 1].split()[2] if "ssh" in call else call[3]
            for call in self.calls
        ]
        return [command for command in commands if command not in ("describe", "gs://pictures")]

    def starts(self, worker: int = 0) -> list[dict]:
        path = self.folder / f"program_worker{worker}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    @property
    def exists(self) -> bool:
        return "states" in json.loads((self.folder / "cloud.json").read_text())


# Tests that run in the background of a shell inherit a Ctrl-C that is ignored, and bash then can't
# trap it.
HEEDS_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def start_and_leave(cloud: Cloud, command: list[str]) -> None:
    """Launches, waits for the log's first line, and presses Ctrl-C."""
    first = subprocess.Popen(
        [sys.executable, "-c", HEEDS_CTRL_C, *command],
        env=cloud.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "worker0 start 1\n"
    os.killpg(first.pid, signal.SIGINT)
    assert "what runs on run1 goes on" in first.communicate(timeout=60)[1]
    assert first.returncode == 130


@pytest.fixture
def cloud(tmp_path, checkout) -> Cloud:
    return Cloud(tmp_path, checkout)


def test_a_run_is_created_installed_started_everywhere_followed_and_deleted(cloud):
    cloud.goes(states=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    done = cloud.run("--spot", "--project", "p")
    assert done.returncode == 0, done.stderr
    assert cloud.verbs == ["create", "scp", "install", "start", "follow", "delete"]
    create = next(call for call in cloud.calls if "create" in call)
    assert " ".join(create) == (
        "compute tpus queued-resources create run1 --accelerator-type v5litepod-16 "
        "--runtime-version v2-alpha-tpuv5-lite --node-id run1 --spot --zone us-west4-a --project p "
        "--quiet"
    )
    assert done.stdout == "worker0 start 1\nthe last line\n"
    workdir = f"{cloud.folder}/bucket/runs/run1"
    for worker in (0, 1):
        (start,) = cloud.starts(worker)
        assert start["argv"] == ["-m", "uvit_jax.main", *CONFIG, "--workdir", workdir]
        assert start["cwd"] == f"{cloud.folder}/run1/worker{worker}/uvit/code"
    assert not cloud.exists
    mount = (cloud.folder / "gcsfuse.log").read_text()
    assert mount.endswith(f"pictures {cloud.folder}/bucket\n")
    assert "--metadata-cache-ttl-secs=0" in mount
    assert "--enable-streaming-writes=false" in mount


def test_arguments_reach_the_program_as_they_were_given(cloud):
    args = (
        *CONFIG,
        '--config.sample.prompts=it\'s a "cat"; two $HOME cats * \\ & \n`date`',
        "--workdir",
        "/w d",
    )
    done = cloud.run("--env", "HF_TOKEN=a 'b'", args=args)
    assert done.returncode == 0, done.stderr
    (start,) = cloud.starts()
    assert start["argv"] == ["-m", "uvit_jax.main", *args]
    assert start["token"] == "a 'b'"


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
    done = cloud.run("--dry-run", "--slices", "2")
    assert done.returncode == 0, done.stderr
    assert not cloud.calls
    lines = done.stdout.splitlines()
    assert all(line.startswith("gcloud ") for line in lines)
    order = [
        "buckets describe",
        " create run1 ",
        "scp",
        "install",
        "start",
        "follow",
        "delete run1 --force",
    ]
    places = [next(i for i, line in enumerate(lines) if word in line) for word in order]
    assert places == sorted(places)
    assert "--node-count 2 --node-prefix run1" in done.stdout
    assert sum("uvit-worker.sh start" in line for line in lines) == 2  # once a slice
    # What is printed is what would be run: bash reads it back as one command with the same
    # arguments.
    start = next(line for line in lines if "uvit-worker.sh start" in line)
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {start}"], capture_output=True, text=True, check=True
    ).stdout
    assert f"--workdir {cloud.folder}/bucket/runs/run1\n" in words


@pytest.mark.slow
def test_several_slices_are_one_run(cloud):
    cloud.goes(workers=1)
    done = cloud.run("--slices", "2")
    assert done.returncode == 0, done.stderr
    nodes = [
        call[4]
        for call in cloud.calls
        if "ssh" in call and " start " in call[call.index("--command") + 1]
    ]
    assert sorted(nodes) == ["run1-0", "run1-1"]
    assert len(cloud.starts()) == 2


def test_a_quota_is_one_sentence_and_not_asked_again(cloud):
    says = (
        "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' has been exceeded. Limit: 0 in zone "
        "us-west4-a."
    )
    cloud.goes(faults=[{"call": "create", "says": says, "times": 9}])
    done = cloud.run()
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == f"error: Google refuses 1 x v5litepod-16 in us-west4-a: {says}"
    )
    assert not cloud.verbs[1:]


def test_a_request_that_fails_is_deleted_and_its_reason_printed(cloud):
    cloud.goes(states=["ACCEPTED", "FAILED"], failure="valid_until passed")
    done = cloud.run()
    assert done.returncode == 1
    assert "Google gave up on 1 x v5litepod-16 in us-west4-a: valid_until passed" in done.stderr
    assert cloud.verbs == ["create", "delete"]


@pytest.mark.parametrize("event", ["preempted", "machines preempted", "machines gone"])
def test_a_preempted_run_goes_on_on_a_new_slice_with_the_same_command(cloud, event):
    cloud.goes("hang hang 0", workers=1, follow={"1": event, "2": event})
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert cloud.verbs.count("create") == cloud.verbs.count("delete") == 3
    first, second, third = cloud.starts()
    assert first == second == third
    # Nothing lost, nothing shown twice.
    assert done.stdout == "worker0 start 1\nworker0 start 2\nworker0 start 3\nthe last line\n"


def test_machines_that_are_not_made_yet_are_waited_for_after_a_preemption_too(cloud):
    cloud.goes("hang 0", workers=1, follow={"1": "preempted"}, unmade={"1": 2, "2": 2})
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert cloud.verbs.count("create") == cloud.verbs.count("delete") == 2


def test_ssh_that_fails_is_tried_again(cloud):
    flake = "[/usr/bin/ssh] exited with return code [255]."
    faults = [
        {"call": call, "says": flake, "times": 2, "code": 255}
        for call in ("scp", "install", " start ")
    ]
    silence = [
        {"call": f"{group} describe", "says": "UNAVAILABLE", "times": 6}
        for group in ("resources", "tpu-vm")
    ]
    cloud.goes(faults=[*faults, *silence])
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert len(cloud.starts()) == 1
    assert cloud.verbs.count("create") == 1  # no answer doesn't mean that nothing is there
    assert "exited with return code [255]. (try 1 of 5)" in done.stderr


@pytest.mark.slow
def test_workers_that_are_never_reached_are_given_back(cloud):
    cloud.goes(faults=[{"call": "scp", "says": "no route to host", "times": 99, "code": 255}])
    done = cloud.run()
    assert done.returncode == 1
    assert "no route to host" in done.stderr
    assert not cloud.exists


@pytest.mark.slow
def test_a_slice_that_was_there_before_is_not_deleted_because_ssh_fails(cloud):
    assert cloud.run("--keep").returncode == 0
    cloud.goes(faults=[{"call": "scp", "says": "no route to host", "times": 99, "code": 255}])
    done = cloud.run()
    assert done.returncode == 1
    assert done.stderr.endswith(
        "error: run1, which was there already, is left as it is: no route to host\n"
    )
    assert cloud.exists


@pytest.mark.slow
def test_the_log_is_shown_once_when_connections_break(cloud):
    cloud.goes("0", follow={"1": "dropped", "2": "dropped"})
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "worker0 start 1\nthe last line\n"
    assert cloud.verbs.count("follow") == 3
    assert len(cloud.starts()) == 1


def test_a_mistake_of_the_users_is_not_started_again(cloud):
    cloud.goes("2")
    done = cloud.run()
    assert done.returncode == 2
    assert "error: the batch is too large" in done.stdout
    assert len(cloud.starts()) == 1
    assert not cloud.exists


def test_a_mistake_that_another_worker_tells_counts_as_one(cloud):
    cloud.goes("1@worker1=late2")
    done = cloud.run()
    assert done.returncode == 2
    assert "error: the batch is too large" in done.stderr
    assert len(cloud.starts()) == 1


def test_crashes_are_started_again_a_bounded_number_of_times(cloud):
    cloud.goes("1")
    done = cloud.run("--max-restarts", "2")
    assert done.returncode == 1
    assert len(cloud.starts()) == len(cloud.starts(1)) == 3
    assert cloud.verbs.count("create") == 1
    assert not cloud.exists


def test_an_exit_code_is_not_lost_to_a_notice_that_comes_after_it(tmp_path):
    executable(tmp_path / "uvit" / "venv" / "bin" / "python", "#!/bin/bash\nexit 7\n")
    (tmp_path / "uvit" / "code").mkdir()
    # Bash reads this first: the notice comes when the program's end has been seen and is not
    # written down yet.
    first = tmp_path / "first.sh"
    first.write_text(
        'wait() { builtin wait "$@" || set -- $?; unset -f wait; kill -TERM $$; return $1; }\n'
    )
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BASH_ENV": str(first)}
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "worker.sh"), "supervise"], env=environ, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "uvit" / "run.exit").read_text() == "7\n"


@pytest.mark.slow
def test_a_run_stopped_by_notice_goes_on_where_the_slice_stays(cloud):
    cloud.goes("143 0")
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert len(cloud.starts()) == 2
    assert cloud.verbs.count("create") == 1


@pytest.mark.slow
def test_workers_that_still_run_save_and_stop_before_a_restart(cloud):
    cloud.goes("1@worker1=hang 0")
    cloud.environ["UVIT_SETTLE_SECONDS"] = "0"
    done = cloud.run("--keep")
    assert done.returncode == 0, done.stderr
    log = (cloud.folder / "run1" / "worker1" / "uvit" / "run.log").read_text()
    assert (
        log
        == "worker1 start 1\npreempted: the checkpoint is saved\nworker1 start 2\nthe last line\n"
    )
    assert [len(cloud.starts(worker)) for worker in (0, 1)] == [2, 2]
    assert cloud.verbs.count("stop") == 1


@pytest.mark.slow
def test_a_bucket_that_cannot_be_mounted_ends_the_run(cloud):
    (cloud.folder / "no_role").touch()
    done = cloud.run()
    assert done.returncode == 2
    assert "bucket pictures can't be mounted" in done.stderr
    assert not cloud.exists


def test_a_bucket_without_hierarchical_namespace_is_refused_before_anything_is_rented(cloud):
    cloud.goes(hierarchical=False)
    done = cloud.run()
    assert done.returncode == 2
    assert "bucket pictures has no hierarchical namespace" in done.stderr
    assert cloud.verbs == []


@pytest.mark.slow
def test_a_slice_is_kept_where_asked_and_status_and_down_see_it(cloud):
    assert cloud.run("--keep").returncode == 0
    assert cloud.exists
    at = ("--name", "run1", "--zone", "us-west4-a")
    status = cloud.launch("status", flags=at)
    assert status.stdout.startswith("run1: ACTIVE\nexit 0, ")
    logs = cloud.launch("logs", flags=at)
    assert logs.stdout == "worker0 start 1\nthe last line\n"
    assert cloud.launch("down", flags=at).returncode == 0
    assert not cloud.exists
    assert cloud.launch("status", flags=at).stdout == "run1: NOT_FOUND\n"


def test_after_ctrl_c_the_run_goes_on_and_the_same_command_follows_it(cloud):
    cloud.goes("hang")
    cloud.environ["UVIT_SETTLE_SECONDS"] = "0"
    command = ["bash", str(cloud.checkout / "launch" / "tpu_vm.sh"), *FLAGS, "--", *CONFIG]
    start_and_leave(cloud, command)
    assert cloud.exists
    other = cloud.run(args=(*CONFIG, "--config.train.steps=5"))
    assert other.returncode == 2  # another command is not started beside it, nor is the run ended
    assert "other code or another command runs there already" in other.stderr
    pid = int((cloud.folder / "run1" / "worker0" / "uvit" / "run.pid").read_text())
    again = subprocess.Popen(
        command, env=cloud.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert again.stdout is not None
    assert again.stdout.readline() == "worker0 start 1\n"
    (cloud.folder / "exits").write_text("0")
    os.kill(pid, signal.SIGTERM)  # as a notice would: it saves, and is started again
    assert again.communicate(timeout=60)[0].endswith(
        "preempted: the checkpoint is saved\nworker0 start 2\nthe last line\n"
    )
    assert again.returncode == 0
    assert not cloud.exists


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--zone", ""), "--zone is missing, expected it or UVIT_ZONE (--help says more)"),
        (("--bucket", ""), "--bucket is missing, expected it or UVIT_BUCKET (--help says more)"),
        (
            ("--name", "Run_1"),
            "--name is 'Run_1', expected at most 40 small letters, digits and hyphens",
        ),
        (("--type", "h100"), "--type is 'h100', expected v5litepod-N, v4-N, v5p-N or v6e-N"),
        (("--slices", "0"), "--slices is '0', expected a whole number from 1"),
        (("--env", "TOKEN"), "--env is 'TOKEN', expected NAME=VALUE"),
        (("--speed", "9"), "--speed is not a flag of tpu_vm.sh"),
        (("--spot=1",), "--spot=1 is not a flag of tpu_vm.sh"),
        (("train",), "'train' is not a flag of tpu_vm.sh"),
        (("--ref",), "--ref needs a value"),
        (("--", "--job", "train"), "--config is missing after --"),
        (
            ("--", "--config", "configs/mine.py"),
            "has no config file configs/mine.py that git knows",
        ),
    ],
)
def test_a_mistake_in_the_flags_is_refused_before_anything_is_asked(cloud, flags, says):
    done = cloud.launch("run", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not cloud.calls


@pytest.mark.slow
def test_changes_not_committed_are_refused_or_copied(tmp_path, checkout):
    changed = tmp_path / "changed"
    shutil.copytree(checkout, changed)
    (changed / "configs" / "imagenet512.py").write_text("changed\n")
    (changed / "LICENSE").unlink()
    cloud = Cloud(tmp_path / "cloud", changed)
    cloud.goes(workers=1)
    refused = cloud.run()
    assert refused.returncode == 2
    assert "changes that are not committed" in refused.stderr
    assert not cloud.calls
    assert cloud.run("--dirty", "--keep").returncode == 0
    copied = cloud.folder / "run1" / "worker0" / "uvit" / "code"
    assert (copied / "configs" / "imagenet512.py").read_text() == "changed\n"
    assert not (copied / "LICENSE").exists()
    assert (copied / "README.md").exists()
    (changed / "configs" / "imagenet512.py").unlink()
    assert "has no config file configs/imagenet512.py" in cloud.run("--dirty").stderr


@pytest.fixture
def repository(tmp_path, checkout) -> pathlib.Path:
    """A copy of the checkout, whose branch main is to move on."""
    shutil.copytree(checkout / ".git", tmp_path / "repository" / ".git")
    git(tmp_path / "repository", "reset", "-q", "--hard")
    return tmp_path / "repository"


@pytest.mark.slow
@pytest.mark.parametrize("ref", ["main", "v1", "a commit"])
def test_code_is_cloned_where_a_repository_is_named(cloud, repository, ref):
    git(repository, "tag", "-a", "v1", "-m", "first")
    commit = git(repository, "rev-parse", "HEAD")
    cloud.goes(workers=1)
    done = cloud.run(
        "--repo", f"file://{repository}", "--ref", commit if ref == "a commit" else ref, "--keep"
    )
    assert done.returncode == 0, done.stderr
    assert git(cloud.folder / "run1" / "worker0" / "uvit" / "code", "rev-parse", "HEAD") == commit


def push_fix(repository: pathlib.Path) -> str:
    (repository / "README.md").write_text("fixed\n")
    git(repository, "commit", "-qam", "fix")
    return git(repository, "rev-parse", "HEAD")


@pytest.mark.slow
@pytest.mark.parametrize("ref", ["main", "HEAD"])
def test_a_fix_that_was_pushed_is_what_runs_next(cloud, repository, ref):
    cloud.goes("2 0", workers=1)
    flags = ("--repo", f"file://{repository}", "--ref", ref, "--keep")
    assert cloud.run(*flags).returncode == 2
    push_fix(repository)
    assert cloud.run(*flags).returncode == 0
    assert (
        cloud.folder / "run1" / "worker0" / "uvit" / "code" / "README.md"
    ).read_text() == "fixed\n"


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_its_code_until_it_starts_anew(cloud, repository):
    cloud.goes("hang 0", workers=2)
    cloud.environ["UVIT_SETTLE_SECONDS"] = "0"
    begun_with = git(repository, "rev-parse", "HEAD")
    flags = ("--repo", f"file://{repository}", "--ref", "main", "--keep")
    command = ["bash", str(cloud.checkout / "launch" / "tpu_vm.sh"), *FLAGS, *flags, "--", *CONFIG]
    start_and_leave(cloud, command)
    fix = push_fix(repository)
    homes = [cloud.folder / "run1" / f"worker{i}" / "uvit" for i in (0, 1)]
    again = subprocess.Popen(
        command, env=cloud.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert again.stdout is not None
    assert again.stdout.readline() == "worker0 start 1\n"
    assert [(home / "code" / "README.md").read_text() for home in homes] == ["README.md\n"] * 2
    os.kill(int((homes[0] / "run.pid").read_text()), signal.SIGTERM)
    output = again.communicate(timeout=60)[1]
    assert again.returncode == 0
    assert (
        output.count(
            f"the run goes on with its code, {begun_with}, and takes {fix} when it is restarted"
        )
        == 1
    )
    assert [(home / "code" / "README.md").read_text() for home in homes] == ["fixed\n"] * 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--repo", "{}/missing"),
            "--repo is '{}/missing', which git can't read: '{}/missing' does not appear to be",
        ),
        (
            ("--repo", "file://{}", "--ref", "mian"),
            "--ref is 'mian', which file://{} doesn't have, expected a branch",
        ),
        (
            ("--repo", "file://{}", "--ref", "ain"),
            "--ref is 'ain', which file://{} doesn't have, expected a branch",
        ),
    ],
)
def test_a_repository_that_cannot_be_read_is_refused_before_anything_is_asked(
    cloud, checkout, flags, says
):
    done = cloud.run(*(flag.format(checkout) for flag in flags))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {says.format(*[checkout] * 2)}")
    assert len(done.stderr.splitlines()) == 1
    assert not cloud.calls


def test_flags_come_from_the_environment_too(cloud):
    names = dict(
        zip(("UVIT_NAME", "UVIT_TYPE", "UVIT_ZONE", "UVIT_BUCKET"), FLAGS[1::2], strict=True)
    )
    done = cloud.launch("run", "--", *CONFIG, flags=(), UVIT_SPOT="1", UVIT_DRY_RUN="1", **names)
    assert done.returncode == 0, done.stderr
    assert "create run1 --accelerator-type v5litepod-16" in done.stdout
    assert "--spot" in done.stdout


def test_help_names_every_flag(cloud):
    done = cloud.launch("--help", flags=())
    assert done.returncode == 0
    source = (ROOT / "launch" / "tpu_vm_flags.sh").read_text()
    names = [
        line.split('"')[1].split()
        for line in source.splitlines()
        if line.startswith(("VALUES=", "SWITCHES="))
    ]
    for name in [*names[0], *names[1]]:
        assert f"--{name.lower().replace('_', '-')} " in done.stdout
        assert f"UVIT_{name}" in done.stdout


@pytest.mark.slow
def test_time_waited_grows(cloud):
    cloud.goes(faults=[{"call": "scp", "says": "no route", "times": 3, "code": 255}])
    executable(cloud.folder / "bin" / "sleep", '#!/bin/bash\necho "$1" >>"$STAND_IN/slept"\n')
    cloud.environ["UVIT_POLL_SECONDS"] = "7"
    began = time.monotonic()
    assert cloud.run().returncode == 0
    assert time.monotonic() - began < 7 + 14 + 28
    assert [s for s in (cloud.folder / "slept").read_text().split() if s != "0.2"][-3:] == [
        "7",
        "14",
        "28",
    ]
