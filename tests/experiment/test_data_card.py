import dataclasses
import logging

import numpy as np
import pytest
from flax import nnx

from tests.data.prepared_sets import prepare
from tests.jobs.digits_config import UNCONDITIONAL, experiment
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import ArrayData
from uvit_jax.errors import UserError
from uvit_jax.experiment.data_card import DataCard, card_of_source, read_card
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.models.latents import Normalization

LEARNED = DataCard(
    "before", ("cat", "dog", "owl"), Normalization((0.5,) * 4, (2.0,) * 4), "taesd", "a" * 64
)
PIXELS = DataCard("before", ("cat", "dog", "owl"))
# Never run: only its name, hash and scale are looked at.
TAESD = Autoencoder(
    name="taesd",
    sha256="a" * 64,
    has_variance=False,
    scale=None,
    latent_channels=4,
    factor=8,
    params={},
    graphdef=nnx.split(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))[0],
)


def images(*class_names):
    return ArrayData(
        "images", np.zeros((3, 8, 8, 1), np.float32), np.zeros(3, np.int64), class_names
    )


def card_of(made, source, autoencoder, learned=None):
    """The card of a data set for an experiment."""
    return card_of_source(source, autoencoder, made.autoencoder.scale, made.model, learned)


def latents(folder, **changes):
    """Latents of three classes without names, of an autoencoder that gives no scale, unless they
    are of other kinds.
    """
    prepare(folder, kind="latents", shape=(4, 4, 4), classes=3)
    manifest = Manifest.load(folder)
    same = {
        "autoencoder": "taesd",
        "autoencoder_sha256": "a" * 64,
        "mean": (0.1,) * 4,
        "std": (0.3,) * 4,
    }
    dataclasses.replace(manifest, **same | changes).save(folder)
    return PreparedData(folder)


@pytest.mark.parametrize("names", [("cat", "dog", "owl"), ()])
def test_a_run_goes_on_with_the_same_classes_or_ones_without_names_and_keeps_what_they_are_called(
    names,
):
    card = card_of(experiment(), images(*names), None, PIXELS)
    assert card == dataclasses.replace(PIXELS, name="images")
    assert card_of(experiment(), images(*names), None, DataCard("before")).class_names == names


@pytest.mark.parametrize(
    ("names", "first", "found", "expected"),
    [
        (("cat", "owl", "dog"), 1, "'owl'", "'dog'"),
        (("cat", "dog", "fox"), 2, "'fox'", "'owl'"),
        (("cat", "dog"), 2, "None", "'owl'"),
    ],
)
def test_other_classes_or_another_order_are_refused_with_the_first_that_differs(
    names, first, found, expected
):
    message = (
        rf"^class {first} of 'images' \(config\.data\.source\) is {found}, but the model "
        rf"learned {expected} as class"
    )
    with pytest.raises(UserError, match=message):
        card_of(experiment(), images(*names), None, PIXELS)
    # Without labels no class means anything.
    unconditional = experiment(**UNCONDITIONAL)
    assert card_of(unconditional, images(*names), None, PIXELS).class_names == names


def test_latents_are_scaled_as_the_run_learned_them_and_not_by_the_statistics_of_other_data(
    tmp_path, caplog
):
    source = latents(tmp_path)
    own = Normalization.from_statistics((0.1,) * 4, (0.3,) * 4)
    assert card_of(experiment(), source, None).normalization == own
    with caplog.at_level(logging.INFO, "uvit_jax"):
        card = card_of(experiment(), source, None, LEARNED)
        assert (
            card_of(experiment(), source, None, card_of(experiment(), source, None)).normalization
            == own
        )
    assert card == dataclasses.replace(LEARNED, name=source.name)
    (message,) = caplog.messages
    assert (
        message == f"latents are scaled as the model has learned them, not by the statistics of "
        f"{source.name}"
    )
    # What was read from a workdir is the same to the last bit.
    LEARNED.save(tmp_path)
    assert read_card(tmp_path) == LEARNED


def test_pixels_encoded_in_the_step_are_scaled_as_the_run_learned_them():
    with pytest.raises(UserError, match="has no scale of its own"):
        card_of(experiment(), images("cat", "dog", "owl"), TAESD)
    card = card_of(experiment(), images("cat", "dog", "owl"), TAESD, LEARNED)
    assert card.normalization == LEARNED.normalization
    with pytest.raises(
        UserError,
        match=r"^the latents of 'images' .* are scaled by 3, expected 2 \(shifted by 0\.5\), as",
    ):
        card_of(experiment(autoencoder__scale=3.0), images("cat", "dog", "owl"), TAESD, LEARNED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scale": 0.18215},
            r"^the latents of .* are scaled by 0\.18215, expected 2 \(shifted by 0\.5\), as those "
            r"of 'bef",
        ),
        (
            {"autoencoder": "kl", "autoencoder_sha256": "b" * 64},
            r"were encoded with 'kl' \(SHA-256 b{12}\), expected 'ta",
        ),
        (
            {"class_names": ("dog", "cat", "owl")},
            r"^class 0 of .* is 'dog', but the model learned 'cat'",
        ),
    ],
)
def test_data_of_another_scale_or_encoder_are_refused(tmp_path, changes, message):
    source = latents(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        card_of(experiment(), source, None, LEARNED)


def test_a_model_of_pixels_is_none_of_latents(tmp_path):
    with pytest.raises(
        UserError, match=r"^the model learned the pixels of 'before', expected no latents of "
    ):
        card_of(experiment(), latents(tmp_path), None, PIXELS)
    with pytest.raises(
        UserError,
        match=r"^the model learned the latents of 'before', expected no pixels of 'images'",
    ):
        card_of(experiment(), images("cat", "dog", "owl"), None, LEARNED)
    with pytest.raises(
        UserError,
        match=r"^config\.autoencoder\.name is 'taesd', expected none: the model learned the pix",
    ):
        PIXELS.check(TAESD)
    PIXELS.check(None)
