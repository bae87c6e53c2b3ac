import numpy as np
import pytest

from tests.jobs.digits_config import KEEPING, UNCONDITIONAL, experiment
from uvit_jax.data.training_data import ArrayData
from uvit_jax.errors import UserError
from uvit_jax.experiment.checks import check_batch, check_mesh, check_source


def source(shape=(8, 8, 1), classes=10) -> ArrayData:
    names = [str(i) for i in range(classes)]
    return ArrayData("toy", np.zeros((2, *shape), np.float32), np.zeros(2, np.int32), names)


def test_a_model_that_fits_the_data_passes():
    check_source(experiment(), source())
    check_source(experiment(**KEEPING), source())
    check_source(experiment(**UNCONDITIONAL), source())


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"model__image_size": 16}, source(), r"shape \(16, 16, 1\), but 'toy' has \(8, 8, 1\)"),
        ({}, source(shape=(8, 8, 3)), r"shape \(8, 8, 1\), but 'toy' has \(8, 8, 3\)"),
        (
            {"model__num_classes": 10},
            source(),
            "num_classes is 10, expected 11: 'toy' has 10 classes, and one row is",
        ),
        (
            KEEPING | {"model__num_classes": 11},
            source(),
            "num_classes is 11, expected 10: 'toy' has 10 classes$",
        ),
        (
            {"model__num_classes": 0, "model__context_dim": 8, "model__context_length": 2},
            source(),
            r"^config\.model\.context_dim is 8, but 'toy' has no captions",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(changes, data, message):
    with pytest.raises(UserError, match=message):
        check_source(experiment(**changes), data)


def test_batches_and_heads_that_split_over_the_mesh_pass():
    check_batch("train", 24, (2, 4, 8), microbatches=3)
    check_batch("sample", 16, (2, 4, 8))
    check_mesh(experiment().model, (2, 4, 8))


@pytest.mark.parametrize("section", ["train", "sample"])
@pytest.mark.parametrize("sizes", [(2, 4, 1), (8, 1, 1)])
def test_a_batch_that_does_not_split_over_the_mesh_is_refused(section, sizes):
    with pytest.raises(
        UserError,
        match=rf"^config\.{section}\.batch_size is 20, .*mesh\.data \* mesh\.fsdp = 8",
    ):
        check_batch(section, 20, sizes)


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        (
            {"model__embed_dim": 72},
            (1, 16, 1),
            r"config\.model\.embed_dim is 72, .*mesh\.fsdp = 16",
        ),
        (
            {"model__mlp_ratio": 1.3},
            (1, 1, 8),
            r"config\.model\.embed_dim \* mlp_ratio is \d+, .*tensor = 8",
        ),
        ({}, (1, 1, 3), r"config\.model\.num_heads is 8, expected a multiple of mesh\.tensor = 3"),
    ],
)
def test_heads_and_channels_that_do_not_split_over_the_mesh_are_refused(changes, sizes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check_mesh(experiment(**changes).model, sizes)
