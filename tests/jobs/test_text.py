"""Captioned images prepared, learned and asked for by prompts."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from configs import digits
from tests.interop.pth_files import write_weights
from tests.jobs.images import write_clip, write_coco, write_images, write_kl
from tests.jobs.runs import TINY
from tests.reference_weights import uvit_weights
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment, resolve
from uvit_jax.experiment.text_states import open_text_states
from uvit_jax.interop.tokenizer import open_tokenizer
from uvit_jax.jobs import prepare, sample, train
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.telemetry.writers import read_metrics

SMALL = {
    "model.image_size": 4,
    "model.in_channels": 4,
    "model.patch_size": 2,
    "model.num_classes": 0,
    "model.context_dim": 32,
    "model.context_length": 24,
    "data.source": "",
    "train.steps": 4,
    "train.batch_size": 8,
    "train.num_images": 4,
    "sample.num_samples": 5,
    "sample.batch_size": 4,
    "sample.steps": 3,
    "prepare.split": "train2017",
    "prepare.mirror": False,
    "prepare.crop": "lanczos",
    "prepare.batch_size": 4,
    "prepare.images_per_shard": 4,
    "text_encoder.batch_size": 4,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """A folder with captioned images, an autoencoder, a text tower, and what `prepare` makes of
    them.
    """
    root = tmp_path_factory.mktemp("text")
    write_coco(root / "coco")
    write_kl(root / "kl.safetensors")
    write_clip(root / "clip")
    prepare.run(experiment(root), root)
    return root


def experiment(root: pathlib.Path, **changes) -> Experiment:
    config = digits.get_config()
    own = {
        "autoencoder.name": str(root / "kl.safetensors"),
        "text_encoder.name": str(root / "clip"),
        "text_encoder.tokenizer": str(root / "clip" / "merges.txt.gz"),
        "data.source": str(root / "data"),
        "prepare.source": str(root / "coco"),
    }
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(TINY | SMALL | own | changes)
    return resolve(config)


@pytest.fixture(scope="module")
def trained(root) -> pathlib.Path:
    train.run(experiment(root), root / "run")
    return root / "run"


def test_captions_are_stored_with_their_images_and_the_empty_one_once(root):
    source, manifest = PreparedData(root / "data"), Manifest.load(root / "data")
    assert (manifest.num_examples, manifest.num_captions, manifest.context_shape) == (
        6,
        12,
        (24, 32),
    )
    text = open_text_states(experiment(root).text_encoder, make_mesh(MeshConfig()))
    assert manifest.text_encoder_sha256 == text.encoder.sha256
    for i in range(6):
        captions = source.captions(i)
        assert captions == [f"{chr(97 + i) * 3} {chr(107 + k)}" for k in range(2)]
        for k, caption in enumerate(captions):
            np.testing.assert_allclose(
                source.context(i, k).astype(np.float32), text([caption])[0], rtol=2e-3, atol=2e-3
            )
    np.testing.assert_allclose(
        source.empty_context.astype(np.float32), text([""])[0], rtol=2e-3, atol=2e-3
    )


def test_a_rerun_does_nothing_and_verify_finds_all_in_order(root):
    assert "already prepared" in prepare.run(experiment(root), root)
    assert "6 images with 12 captions" in prepare.run(experiment(root, prepare__verify=True), root)


def test_states_of_another_precision_are_not_gone_on_with(root):
    said = "was begun with text_encoder_dtype = 'float32', but it is 'bfloat16' now"
    with pytest.raises(UserError, match=said):
        prepare.run(experiment(root, text_encoder__dtype="bfloat16"), root)


def test_the_same_tokens_may_be_of_another_file_and_others_may_not(root, tmp_path):
    vocab = open_tokenizer(str(root / "clip" / "merges.txt.gz")).backend.get_vocab()
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    other = experiment(root, text_encoder__tokenizer=str(tmp_path))
    assert "already prepared" in prepare.run(other, root)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"a": vocab["b"], "b": vocab["a"]}))
    said = (
        r"was begun with tokenizer_sha256 = '\w{64}', .* now \(of "
        r"config\.text_encoder\.tokenizer's tokens\): expected"
    )
    with pytest.raises(UserError, match=said):
        prepare.run(other, root)


def test_a_text_model_trains_and_draws_captions_of_its_data(trained):
    assert all(np.isfinite([line["loss"] for line in read_metrics(trained / "metrics.jsonl")]))
    assert np.asarray(Image.open(trained / "samples" / "final.png")).std() > 0
    card = json.loads((trained / "data.json").read_text())
    assert card["text_encoder"].endswith("clip")
    assert len(card["text_encoder_sha256"]) == 64


def test_prompts_are_drawn_in_turn_and_written_beside_the_images(root, trained, tmp_path):
    made = experiment(root, sample__prompts="a red bus; two cats", sample__out=str(tmp_path))
    sample.run(made, trained)
    assert len(list(tmp_path.glob("0*.png"))) == 5
    assert (tmp_path / "prompts.txt").read_text().splitlines() == ["a red bus", "two cats"] * 2 + [
        "a red bus"
    ]


def test_samples_depend_on_the_prompt_and_the_negative_prompt(root, trained, tmp_path):
    def images(**fields) -> np.ndarray:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        fields = {"sample__prompts": "one; two", "sample__guidance_scale": 2.0} | fields
        sample.run(experiment(root, sample__format="npz", sample__out=str(out), **fields), trained)
        return np.load(out / "samples.npz")["images"].astype(int)

    base = images()
    other = images(sample__prompts="one; three")
    assert np.array_equal(base[::2], other[::2])
    assert not np.array_equal(base[1::2], other[1::2])
    assert not np.array_equal(base, images(sample__negative_prompt="four"))
    # Cleaned, these are the same prompts.
    assert np.array_equal(base, images(sample__prompts="  ONE ;  two "))


@pytest.mark.slow
def test_a_gallery_of_prompts_can_be_drawn_while_training(root, tmp_path):
    train.run(experiment(root, sample__prompts="one; two", train__steps=2), tmp_path)
    assert np.asarray(Image.open(tmp_path / "samples" / "final.png")).std() > 0


def test_official_weights_are_asked_for_prompts_without_any_data(root, tmp_path):
    weights = write_weights(tmp_path / "official.pth", uvit_weights(experiment(root).model))
    fields = {"init_from": str(weights), "data__source": "/nowhere", "sample__prompts": "one"}
    assert "sampled 5 images" in sample.run(experiment(root, **fields), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.context_dim": 48},
            r"context_length, context_dim = \(24, 48\), but the captions of .* \(24, 32\)",
        ),
        (
            {"model.context_length": 77},
            r"context_length, context_dim = \(77, 32\), but the captions of",
        ),
    ],
)
def test_a_context_of_another_shape_is_told_before_training(root, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train.run(experiment(root, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sample.prompts": ""},
            r'^config\.sample\.prompts is empty, expected texts as "a red bus',
        ),
        ({"text_encoder.name": ""}, r"^config\.text_encoder\.name is empty, expected '.*clip'"),
        ({"text_encoder.name": "openai/gone"}, r"openai/gone"),
    ],
)
def test_what_prompts_need_is_named(root, trained, changes, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        sample.run(
            experiment(root, **{"sample.prompts": "one", "text_encoder.tokenizer": "", **changes}),
            trained,
        )


def test_another_text_tower_than_the_data_s_is_refused(root, trained, tmp_path):
    other = write_clip(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    with pytest.raises(
        UserError,
        match=r"^config\.text_encoder\.name is .*, but the captions of .* were encoded with",
    ):
        sample.run(experiment(root, sample__prompts="one", **other), trained)


def test_labels_of_a_model_of_text_are_refused(root):
    with pytest.raises(
        UserError, match=r"^config\.sample\.labels is '0', expected 'all' for a model of text"
    ):
        experiment(root, sample__labels="0")


def test_prompts_of_a_model_without_text_and_negative_ones_without_guidance_are_refused(root):
    with pytest.raises(
        UserError,
        match=r"^config\.sample\.prompts is 'one', expected none for a model without text",
    ):
        experiment(
            root,
            sample__prompts="one",
            model__context_dim=0,
            model__context_length=0,
            model__num_classes=4,
        )
    with pytest.raises(
        UserError, match=r"^config\.sample\.negative_prompt is 'one', but .*guidance_scale is 0"
    ):
        experiment(root, sample__negative_prompt="one", sample__guidance_scale=0.0)


def test_a_text_encoder_wants_captions(root, tmp_path):
    write_images(tmp_path / "images")
    made = experiment(
        root, prepare__source=str(tmp_path / "images"), prepare__split="train", data__source="out"
    )
    with pytest.raises(
        UserError, match=r"^config\.text_encoder\.name is '.*', but images has no captions"
    ):
        prepare.run(made, tmp_path)


def test_a_random_tower_wants_a_tokenizer(root):
    with pytest.raises(
        UserError, match=r"^config\.text_encoder\.tokenizer is empty, .*'random:0' has none"
    ):
        prepare.run(
            experiment(root, text_encoder__name="random:0", text_encoder__tokenizer=""), root
        )
