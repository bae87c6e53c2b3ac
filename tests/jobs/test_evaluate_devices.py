"""Samples on any devices: found ones have the same numbers, drawn ones the same images."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.jobs.runs import ROOT, environment

pytestmark = pytest.mark.slow

SPLITS = [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2)]
COUNT = 150  # no multiple of what eight devices take at a time

PROGRAM = """
import json, pathlib, sys, jax, numpy as np
from tests.jobs.evaluate_runs import write_run
from tests.jobs.runs import tiny_experiment
from uvit_jax.errors import UserError
from uvit_jax.experiment import assembled
from uvit_jax.jobs import evaluate, train
from uvit_jax.parallel import mesh as meshes
root, count = pathlib.Path(sys.argv[1]), int(sys.argv[3])
make_mesh = meshes.make_mesh
write_run(root / "run", tiny_experiment())
images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
np.savez(root / "found.npz", images=images)
for split in json.loads(sys.argv[2]):
    data, fsdp, tensor = split
    # One device is a mesh of the first of the eight.
    devices = jax.devices()[: data * fsdp * tensor]
    evaluate.make_mesh = lambda config, **_: make_mesh(config, devices)
    assembled.make_mesh = lambda config, *_, **__: make_mesh(config, devices)
    name = "x".join(map(str, split))
    common = dict(
        mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, evaluate__num_features=300,
        evaluate__save="npz", evaluate__num_samples=count,
    )
    work = root / f"work_{name}"  # a reference for each split
    for batch in (16, 64):
        evaluate.run(tiny_experiment(
            evaluate__samples=str(root / "found.npz"), sample__batch_size=batch,
            evaluate__out=str(root / f"{name}_found_{batch}"), **common
        ), work)
    evaluate.run(tiny_experiment(
        evaluate__out=str(root / f"{name}_drawn"), sample__batch_size=32, **common
    ), root / "run")
evaluate.make_mesh, assembled.make_mesh = make_mesh, make_mesh
# Batches of samples that the devices don't divide are refused before a step is made.
refused = tiny_experiment(mesh__data=8, sample__batch_size=12, evaluate__every=1)
try:
    train.run(refused, root / "train")
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("splits")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), json.dumps(SPLITS), str(COUNT)],
        cwd=ROOT,
        env=environment(devices=8),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == (
        "config.sample.batch_size is 12, expected a multiple of mesh.data * mesh.fsdp = 8"
    )
    return root


def metrics(root: pathlib.Path, split, what: str) -> dict[str, float]:
    return json.loads(
        (root / f"{'x'.join(map(str, split))}_{what}" / "evaluation.json").read_text()
    )["metrics"]


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: "data{}-fsdp{}-tensor{}".format(*split))
def test_found_samples_have_the_numbers_of_one_device(root, split):
    expected = metrics(root, (1, 1, 1), "found_16")
    assert len(expected) == 8
    for batch in (16, 64):
        found = metrics(root, split, f"found_{batch}")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-8, err_msg=name)


@pytest.mark.parametrize(
    "split", SPLITS[1:], ids=lambda split: "data{}-fsdp{}-tensor{}".format(*split)
)
def test_drawn_samples_are_those_of_one_device(root, split):
    images = [
        np.load(root / f"{'x'.join(map(str, each))}_drawn" / "samples.npz")["arr_0"].astype(int)
        for each in ((1, 1, 1), split)
    ]
    assert len(images[0]) == COUNT
    assert np.abs(images[0] - images[1]).max() <= 1
    name = "own_feature_fd"
    expected = metrics(root, (1, 1, 1), "drawn")[name]
    np.testing.assert_allclose(metrics(root, split, "drawn")[name], expected, rtol=1e-3)
