"""The digits run under 8 devices in any split gives the numbers of one device."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.jobs.runs import ROOT, environment

pytestmark = pytest.mark.slow

SPLITS = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2)]

PROGRAM = """
import json, sys, jax, numpy as np
from tests.jobs.runs import final_state, tiny_experiment
from uvit_jax.jobs import sample, train
from uvit_jax.parallel import mesh as meshes
from uvit_jax.telemetry.writers import read_metrics
import pathlib
root = pathlib.Path(sys.argv[1])
make_mesh = meshes.make_mesh
for split in json.loads(sys.argv[2]):
    data, fsdp, tensor = split
    # One device is a mesh of the first of the eight.
    assembled, taken = sys.modules["uvit_jax.experiment.assembled"], data * fsdp * tensor
    assembled.make_mesh = lambda config, _, **__: make_mesh(config, jax.devices()[:taken])
    workdir = root / "x".join(map(str, split))
    experiment = tiny_experiment(
        mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, sample__format="npz",
        sample__out=str(workdir / "out"),
        model__scan_blocks=bool(fsdp > 1), optimizer__warmup_steps=0,
    )
    train.run(experiment, workdir)
    sample.run(experiment, workdir)
    np.savez(workdir / "state.npz", **final_state(workdir))
# A checkpoint of one split goes on under another.
setup.make_mesh = make_mesh
experiment = tiny_experiment(mesh__data=8, train__steps=10, optimizer__warmup_steps=0)
print(train.run(experiment, root / "1x8x1"))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("splits")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), json.dumps(SPLITS)],
        cwd=ROOT,
        env=environment(devices=8),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "to step 10" in result.stdout
    return root


@pytest.mark.parametrize(
    "split", SPLITS[1:], ids=lambda split: "data{}-fsdp{}-tensor{}".format(*split)
)
def test_eight_devices_give_the_losses_weights_and_samples_of_one(runs, split):
    one, other = runs / "1x1x1", runs / "x".join(map(str, split))
    losses = [
        [
            json.loads(line)["loss"]
            for line in (workdir / "metrics.jsonl").read_text().splitlines()[:4]
        ]
        for workdir in (one, other)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    states = [np.load(workdir / "state.npz") for workdir in (one, other)]
    for name in states[0].files:
        if name.startswith(("params", "ema")):
            np.testing.assert_allclose(
                states[0][name], states[1][name], atol=1e-5, rtol=1e-4, err_msg=name
            )
    images = [
        np.load(workdir / "out" / "samples.npz")["images"].astype(int) for workdir in (one, other)
    ]
    assert np.abs(images[0] - images[1]).max() <= 1
