import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.jobs.runs import ROOT, environment
from tests.metrics.small_network import WIDTHS, small_network
from uvit_jax.errors import UserError
from uvit_jax.metrics.feature_network import CHUNK, Extraction
from uvit_jax.metrics.random_filters import random_filters
from uvit_jax.parallel.mesh import MeshConfig, make_mesh

IMAGES = np.random.default_rng(0).integers(256, size=(37, 12, 9, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def own(mesh):
    return Extraction(random_filters(), mesh, ["pool"], chunk=16)


@pytest.mark.parametrize("size", [1, 5, 16, 17, 36])
def test_features_are_the_same_bits_in_batches_of_any_size(own, size):
    together = own(IMAGES)["pool"]
    parts = [own(IMAGES[first : first + size])["pool"] for first in range(0, len(IMAGES), size)]
    np.testing.assert_array_equal(np.concatenate(parts), together)


def test_features_do_not_depend_on_the_place_in_a_batch_or_on_who_else_is_there(own):
    together = own(IMAGES)["pool"]
    order = np.random.default_rng(1).permutation(len(IMAGES))
    np.testing.assert_array_equal(own(IMAGES[order])["pool"], together[order])
    beside_others = np.concatenate([255 - IMAGES[:3], IMAGES[5:6]])
    np.testing.assert_array_equal(own(beside_others)["pool"][3], together[5])


def test_the_kinds_asked_for_come_as_float32_rows(mesh):
    found = Extraction(small_network(), mesh, ["logits", "pool"])(IMAGES)
    assert {kind: (array.shape, array.dtype) for kind, array in found.items()} == {
        kind: ((37, WIDTHS[kind]), np.dtype(np.float32)) for kind in ("logits", "pool")
    }


def test_no_images_have_no_features(own):
    assert own(IMAGES[:0])["pool"].shape == (0, 336)


def test_one_program_serves_every_number_of_images(mesh):
    traced = []
    network = small_network()

    def apply(params, images, kinds):
        traced.append(images.shape)
        return network.apply(params, images, kinds)

    extraction = Extraction(small_network(apply=apply), mesh, ["pool"], chunk=8)
    assert extraction.rows == 8
    for count in (3, 8, 37, 1):
        extraction(IMAGES[:count])
    assert traced == [(8, 12, 9, 3)]
    assert Extraction(small_network(), mesh, ["pool"]).rows == CHUNK.get(
        jax.devices()[0].platform, 128
    )


def test_work_handed_out_early_gives_the_same(own):
    pending = [own.start(IMAGES[:20]), own.start(IMAGES[20:])]
    found = np.concatenate([one.wait()["pool"] for one in pending])
    np.testing.assert_array_equal(found, own(IMAGES)["pool"])


def test_a_network_s_refusal_of_images_is_raised(mesh):
    def refuse(params, images, kinds):
        raise UserError(f"the images are {images.shape[1]}x{images.shape[2]}, expected none")

    extraction = Extraction(small_network(apply=refuse), mesh, ["pool"])
    with pytest.raises(UserError, match=r"^the images are 12x9, expected none"):
        extraction(IMAGES)


PROGRAM = """
import json, pathlib, sys, jax, numpy as np
from uvit_jax.interop.inception import open_inception
from uvit_jax.jobs.evaluation.feature_networks import open_feature_network
from uvit_jax.metrics.feature_network import Extraction
from uvit_jax.metrics.random_filters import random_filters
from uvit_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from tests.jobs.digits_config import experiment
from tests.metrics.test_feature_network import write_inception

path, sha256 = write_inception(pathlib.Path(sys.argv[1]))
options = {"evaluate__features": "inception", "evaluate__inception": path}
options["evaluate__inception_sha256"] = sha256
images = np.random.default_rng(0).integers(256, size=(21, 32, 32, 3), dtype=np.uint8)
found = {}
for network in (random_filters(), open_feature_network(experiment(**options).evaluate)):
    alone = None
    for sizes in [(1, 1, 1), *map(tuple, json.loads(sys.argv[2]))]:
        count = int(np.prod(sizes))
        mesh = make_mesh(MeshConfig(**dict(zip(AXES, sizes))), jax.devices()[:count])
        features = Extraction(network, mesh, tuple(network.widths), chunk=3)(images)
        alone = features if alone is None else alone
        for kind, array in features.items():
            assert array.shape == (21, network.widths[kind])
            gap = float(np.max(np.abs(array - alone[kind])) / np.max(np.abs(alone[kind])))
            found[f"{network.name} {kind} {sizes}"] = gap
print(json.dumps(found))
"""


def write_inception(folder):
    """Formula weights as a file; its name and hash."""
    from tests.interop.test_inception import write
    from tests.reference_weights import formula_weight

    keys = json.loads((ROOT / "tests" / "golden" / "inception_keys.json").read_text())
    weights = {
        key: np.asarray(formula_weight(key, tuple(shape)), np.float32)
        for key, shape in keys.items()
    }
    path, sha256 = write(folder / "inception.safetensors", weights)
    return str(path), sha256


@pytest.mark.slow
def test_features_are_the_same_bits_on_every_mesh(tmp_path):
    meshes = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(meshes)],
        cwd=ROOT,
        env=environment(devices=8),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    gaps = json.loads(result.stdout)
    assert len(gaps) == (1 + 3) * 5
    assert gaps == dict.fromkeys(gaps, 0.0)


def test_kinds_are_worked_on_in_one_order_whatever_order_they_are_asked_in(mesh):
    # Hosts fetch them kind by kind, together; the order of a set is another one in each process.
    images = np.zeros((3, 8, 8, 3), np.uint8)
    for kinds in (["spatial", "pool"], ("pool", "spatial")):
        pending = Extraction(small_network(), mesh, kinds).start(images)
        assert list(pending.widths) == ["pool", "spatial"]
    assert small_network().reference_kinds == ("pool", "spatial")


def test_alpha_has_no_part_in_features(own):
    alpha = np.random.default_rng(1).integers(256, size=(*IMAGES.shape[:3], 1), dtype=np.uint8)
    found = own(np.concatenate([IMAGES, alpha], -1)[:5])["pool"]
    np.testing.assert_array_equal(found, own(IMAGES[:5])["pool"])
    grey = IMAGES[:5, ..., :1]
    np.testing.assert_array_equal(
        own(np.concatenate([grey, alpha[:5]], -1))["pool"], own(grey)["pool"]
    )
