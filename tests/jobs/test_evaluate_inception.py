"""Samples scored with Inception-v3, whole, of weights that are not the published ones."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.jobs.evaluate_runs import evaluation
from tests.jobs.test_evaluate_found import digits
from tests.reference_weights import formula_weight
from uvit_jax.errors import UserError
from uvit_jax.jobs import evaluate

pytestmark = pytest.mark.slow

COUNT = 12


def test_other_weights_need_their_hash_and_their_numbers_are_not_called_fid(golden_dir, tmp_path):
    keys = json.loads((golden_dir / "inception_keys.json").read_text())
    weights = tmp_path / "inception.safetensors"
    save_file({key: formula_weight(key, tuple(shape)) for key, shape in keys.items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    np.savez(tmp_path / "samples.npz", images=digits(0, COUNT))
    np.savez(tmp_path / "reference.npz", images=digits(100, COUNT))
    fields = {
        "evaluate__features": "inception",
        "evaluate__inception": str(weights),
        "evaluate__samples": str(tmp_path / "samples.npz"),
        "evaluate__reference": str(tmp_path / "reference.npz"),
        "evaluate__out": str(tmp_path / "out"),
    }
    with pytest.raises(
        UserError,
        match=rf"set config\.evaluate\.inception_sha256={digest} to use it anyway, but its",
    ):
        evaluate.run(evaluation(**fields), tmp_path)

    line = evaluate.run(evaluation(**fields, evaluate__inception_sha256=digest), tmp_path)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    metrics = report["metrics"]
    expected = (
        "fd",
        "fd_bias",
        "sfd",
        "score",
        "score_std",
        "kd",
        "kd_std",
        "precision",
        "recall",
        "density",
    )
    assert metrics.keys() == {f"other_inception_{name}" for name in (*expected, "coverage")}
    assert metrics["other_inception_fd"] > 0
    assert metrics["other_inception_sfd"] > 0
    assert 1 <= metrics["other_inception_score"] <= COUNT
    assert report["not computed"].keys() == {"clip"}
    assert (report["features"]["sha256"], report["features"]["resize"]) == (digest, "pytorch-fid")
    assert f"{COUNT} samples are fewer than the 2,048 features" in report["warnings"][0]
    assert line.startswith(f"evaluated {COUNT} images: other_inception_fd ")
