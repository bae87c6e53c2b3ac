"""The metrics on features against torch-fidelity and pytorch-fid.

Both import torchvision, which is stood in for here: what is asked of them needs none of it.
"""

import importlib
import sys
import types
import warnings

import numpy as np
import pytest

from uvit_jax.metrics.frechet import frechet_distance
from uvit_jax.metrics.inception_score import InceptionScore
from uvit_jax.metrics.kid import kid
from uvit_jax.metrics.moments import Moments
from uvit_jax.metrics.precision_recall import precision_recall

pytestmark = pytest.mark.torch

TORCHVISION = {
    "torchvision": (),
    "torchvision.datasets": ("CIFAR10", "CIFAR100", "STL10"),
    "torchvision.models": (),
    "torchvision.models.inception": ("InceptionA", "InceptionC", "InceptionE"),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": (),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def reference(torch, monkeypatch):
    """reference("package.module") -> the module, imported beside a torchvision of empty classes."""

    def find(name):
        pytest.importorskip(name.split(".")[0])
        return importlib.import_module(name)

    for name, classes in TORCHVISION.items():
        module = types.ModuleType(name)
        for each in classes:
            setattr(module, each, type(each, (), {}))
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    yield find
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("torch_fidelity", "pytorch_fid")
    ]:
        del sys.modules[name]


def features(seed, n, shift=0.0, width=32):
    """Correlated rows, positive as pooled features are."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((width, width)) / np.sqrt(width)
    return np.maximum(rng.standard_normal((n, width)) @ mixing + 0.3 + shift, 0).astype(np.float32)


def moments(rows):
    made = Moments(rows.shape[1])
    made.update(rows)
    return made.mean, made.covariance


# The last sets have fewer rows than features, where the references' own roots are good to some
# 1e-7.
SETS = [
    (features(0, 500), features(1, 400, 0.1)),
    (features(2, 300), features(3, 300)),
    (features(4, 20), features(5, 400, 0.1)),
]


@pytest.mark.parametrize("sets", SETS, ids=("apart", "alike", "few"))
def test_frechet_distance(reference, torch, sets):
    calculate = reference("pytorch_fid.fid_score").calculate_frechet_distance
    gaussians = [moments(rows) for rows in sets]
    ours = frechet_distance(*gaussians[0], *gaussians[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sqrtm's new signature, and singular products
        try:
            theirs = calculate(*gaussians[0], *gaussians[1])
        except TypeError as error:  # its call of sqrtm is an old one
            pytest.skip(f"pytorch-fid does not run with this scipy: {error}")
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("sets", SETS, ids=("apart", "alike", "few"))
def test_frechet_distance_of_torch_fidelity(reference, torch, sets):
    module = reference("torch_fidelity.metric_fid")
    statistics = [
        module.fid_features_to_statistics(torch.from_numpy(rows.astype(np.float64)))
        for rows in sets
    ]
    theirs = module.fid_statistics_to_metric(*statistics, verbose=False)[
        "frechet_inception_distance"
    ]
    gaussians = [moments(rows) for rows in sets]
    assert frechet_distance(*gaussians[0], *gaussians[1]) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("n", [500, 1003])
def test_inception_score(reference, torch, n):
    logits = 4 * np.random.default_rng(0).standard_normal((n, 50)).astype(np.float32)
    module = reference("torch_fidelity.metric_isc")
    theirs = module.isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=False)
    score = InceptionScore(n)
    for first in range(0, n, 64):
        score.update(logits[first : first + 64], first)
    expected = theirs["inception_score_mean"], theirs["inception_score_std"]
    np.testing.assert_allclose(score.result(), expected, rtol=1e-9)


def test_kernel_distance(reference, torch):
    a, b = features(0, 500), features(1, 400, 0.1)
    module = reference("torch_fidelity.metric_kid")
    theirs = module.kid_features_to_metric(
        *(torch.from_numpy(rows.astype(np.float64)) for rows in (a, b)),
        kid_subsets=20,
        kid_subset_size=150,
        verbose=False,
    )
    expected = theirs["kernel_inception_distance_mean"], theirs["kernel_inception_distance_std"]
    np.testing.assert_allclose(kid(a, b, subsets=20, subset_size=150), expected, rtol=1e-10)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall(reference, torch, k):
    real, fake = features(0, 500), 0.9 * features(1, 400, 0.1)
    module = reference("torch_fidelity.metric_prc")
    theirs = module.prc_features_to_metric(  # generated first
        *(torch.from_numpy(rows.astype(np.float64)) for rows in (fake, real)),
        prc_neighborhood=k,
        verbose=False,
    )
    precision, recall = precision_recall(real, fake, k)
    assert 0.2 < precision < 0.99
    assert 0.2 < recall < 0.99
    np.testing.assert_allclose(
        (precision, recall), (theirs["precision"], theirs["recall"]), rtol=1e-6
    )
