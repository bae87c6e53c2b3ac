"""Latents prepared, learned and decoded on 8 devices are those of one."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.jobs.runs import ROOT, environment

pytestmark = pytest.mark.slow

PROGRAM = """
import pathlib, sys
from tests.jobs.test_latents import SMALL, experiment
from tests.jobs.images import write_images, write_kl
from uvit_jax.jobs import prepare, sample, train
root, devices = pathlib.Path(sys.argv[1]), sys.argv[2]
if devices == "1":
    write_images(root / "images")
    write_kl(root / "kl.safetensors")
own = {"prepare.batch_size": 8, "sample.batch_size": 8, "optimizer.warmup_steps": 0}
prepare.run(experiment(root, "kl", **{**own, "prepare.out": str(root / f"kl{devices}")}), root)
prepare.run(experiment(root, "pixels", **{**own, "prepare.latents": False, "prepare.image_size": 16,
    "prepare.out": str(root / f"pixels{devices}")}), root)
meshes = {"1": [(1, 1, 1)], "8": [(8, 1, 1), (2, 2, 2)]}[devices]
for data, fsdp, tensor in meshes:
    mesh = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
    for name in ("kl", "pixels"):
        workdir = root / f"{name}_{data}{fsdp}{tensor}"
        made = {**own, **mesh, "sample.format": "npz", "sample.out": str(workdir / "out")}
        # The same records for all: those that one device made.
        made = experiment(root, name, **made, **{"data.source": str(root / f"{name}1")})
        train.run(made, workdir)
        sample.run(made, workdir)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("devices")
    for devices in (1, 8):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(root), str(devices)],
            cwd=ROOT,
            env=environment(devices=devices),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stderr[-3000:]
    return root


def test_eight_devices_prepare_what_one_does(root):
    from uvit_jax.data.prepared.prepared_data import PreparedData

    for name in ("kl", "pixels"):
        sources = [PreparedData(root / f"{name}{devices}") for devices in (1, 8)]
        one, other = (source.read(np.arange(12), np.zeros(12, bool)) for source in sources)
        assert np.array_equal(one["label"], other["label"])
        np.testing.assert_allclose(
            one["x"].astype(float), other["x"].astype(float), rtol=2e-3, atol=2e-3
        )


@pytest.mark.parametrize("split", ["811", "222"])
@pytest.mark.parametrize("name", ["kl", "pixels"], ids=["moments", "encoded_in_the_step"])
def test_eight_devices_learn_and_decode_what_one_does(root, name, split):
    one, other = root / f"{name}_111", root / f"{name}_{split}"
    losses = [
        [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in (one, other)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    images = [
        np.load(workdir / "out" / "samples.npz")["images"].astype(int) for workdir in (one, other)
    ]
    assert images[0].shape == (5, 16, 16, 3)
    assert np.abs(images[0] - images[1]).max() <= 2
