"""Samples of a text model: of prompts or of captions, with their CLIP score."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.interop.pth_files import write_weights
from tests.jobs.evaluate_runs import evaluation as digits_evaluation
from tests.jobs.evaluate_runs import write_run, write_whole_clip
from tests.jobs.images import write_clip, write_coco, write_kl
from tests.jobs.test_text import experiment as text_experiment
from tests.reference_weights import uvit_weights
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.interop.clip_text import open_text_encoder
from uvit_jax.interop.clip_vision import open_image_encoder
from uvit_jax.interop.official import read_weights
from uvit_jax.interop.tokenizer import open_tokenizer
from uvit_jax.jobs import evaluate, prepare, train
from uvit_jax.telemetry.writers import read_metrics

COUNT = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """Captioned images, what `prepare` makes of them, a run on it, and a whole CLIP."""
    root = tmp_path_factory.mktemp("text")
    write_coco(root / "coco")
    write_kl(root / "kl.safetensors")
    write_clip(root / "clip")
    write_whole_clip(root / "whole_clip")
    prepare.run(text_experiment(root), root)
    write_run(root / "run", evaluation(root))
    return root


def evaluation(root: pathlib.Path, **changes) -> Experiment:
    own = {
        "model__depth": 1,
        "evaluate__num_samples": COUNT,
        "evaluate__clip": str(root / "whole_clip"),
        "evaluate__save": "npz",
    }
    return text_experiment(root, **{**own, **changes})


def report_of(root: pathlib.Path, out: pathlib.Path, **changes) -> dict:
    evaluate.run(evaluation(root, evaluate__out=str(out), **changes), root / "run")
    return json.loads((out / "evaluation.json").read_text())


def clip_score(root: pathlib.Path, images: np.ndarray, texts: list[str]) -> float:
    """The mean of 100 cos(image, text), straight from both towers."""
    name = str(root / "whole_clip")
    image_encoder, text_encoder = open_image_encoder(name), open_text_encoder(name)
    ids = open_tokenizer(str(root / "clip" / "merges.txt.gz"), context_length=24).tokenize(texts)
    a = np.asarray(jax.jit(image_encoder.embed)(image_encoder.params, images), np.float64)
    b = np.asarray(jax.jit(text_encoder.embed)(text_encoder.params, ids), np.float64)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(np.maximum(100 * cosines, 0).mean())


@pytest.mark.slow
def test_prompts_in_turn_have_a_clip_score_of_each_image_with_its_own(root, tmp_path):
    prompts = "a red bus; two cats; abc"
    line = evaluate.run(
        evaluation(root, sample__prompts=prompts, evaluate__out=str(tmp_path)), root / "run"
    )
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert f", clip_score {report['metrics']['clip_score']:.4g}: see " in line
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    expected = clip_score(root, images, ["a red bus", "two cats", "abc"] * 4)
    np.testing.assert_allclose(report["metrics"]["clip_score"], expected, rtol=1e-4)
    shifted = clip_score(root, images, ["abc", "a red bus", "two cats"] * 4)
    assert abs(expected - shifted) > 1e-2
    samples = report["samples"]
    assert samples["prompts"] == prompts
    assert samples["decoder"].endswith("kl.safetensors")
    assert len(samples["decoder sha256"]) == len(samples["texts sha256"]) == 64
    assert (report["reference"]["source"], report["reference"]["shape"]) == (
        "coco:coco:train2017",
        [16, 16, 3],
    )
    assert report["plan"]["clip"]["images"] != report["plan"]["clip"]["texts"]


@pytest.mark.slow
def test_captions_of_a_data_set_are_drawn_without_any_encoder_and_scored(root, tmp_path):
    captions = {"evaluate__captions": str(root / "data"), "text_encoder__name": ""}
    report = report_of(root, tmp_path, **captions)
    assert report["samples"]["captions"] == str(root / "data")
    manifest = json.loads((root / "data" / "manifest.json").read_text())
    assert report["samples"]["text encoder"] == manifest["text_encoder"]
    assert report["samples"]["text encoder sha256"] == manifest["text_encoder_sha256"]
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    assert len(images) == COUNT
    assert 0 < report["metrics"]["clip_score"] < 100
    other = report_of(root, tmp_path / "other", sample__seed=1, **captions)
    assert other["samples"]["texts sha256"] != report["samples"]["texts sha256"]


@pytest.mark.slow
def test_a_file_of_prompts_that_was_changed_is_another_evaluation(root, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red bus\n")
    asked = {"sample__prompts": str(prompts), "evaluate__metrics": "clip"}
    first = report_of(root, tmp_path / "out", **asked)
    assert first["metrics"].keys() == {"clip_score"}
    prompts.write_text("two cats\n")
    with pytest.raises(UserError, match=r"holds another evaluation \(samples texts sha256 = "):
        report_of(root, tmp_path / "out", **asked)


@pytest.mark.slow
def test_another_encoder_under_the_same_name_is_another_evaluation(root, tmp_path):
    clip = shutil.copytree(root / "clip", tmp_path / "clip")
    write_weights(
        tmp_path / "weights.pth", uvit_weights(evaluation(root).model, 5)
    )  # of no text encoder in particular
    asked = {
        "sample__prompts": "a red bus",
        "evaluate__metrics": "fid",
        "text_encoder__name": str(clip),
        "text_encoder__tokenizer": str(clip / "merges.txt.gz"),
        "init_from": str(tmp_path / "weights.pth"),
        "data__source": "/nowhere",
        "evaluate__reference": str(root / "coco" / "train2017"),
        "prepare__split": "train",
        "evaluate__out": str(tmp_path / "out"),
    }
    evaluate.run(evaluation(root, **asked), tmp_path / "run")
    state = read_weights(clip / "model.safetensors")
    save_file({name: 1.5 * array for name, array in state.items()}, clip / "model.safetensors")
    with pytest.raises(
        UserError, match=r"holds another evaluation \(samples text encoder sha256 = "
    ):
        evaluate.run(evaluation(root, **asked), tmp_path / "run")


@pytest.mark.slow
def test_while_training_samples_are_of_the_data_s_captions(root, tmp_path):
    asked = evaluation(root, evaluate__every=2, evaluate__train_samples=8, train__steps=2)
    train.run(asked, tmp_path)
    (line,) = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" not in line]
    assert line["own_feature_fd_8_ema_dpmsolverpp_3_guidance_0.5"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"^config\.sample\.prompts is empty, expected texts as"),
        (
            {"evaluate__captions": "gone"},
            r"^config\.evaluate\.captions is '.*gone': cannot read .*manifest\.json",
        ),
        (
            {"sample__prompts": "one", "evaluate__clip": "clip"},
            r"^config\.evaluate\.clip is '.*clip': .*, expected clip or clip_vision_",
        ),
        (
            {"sample__prompts": "one", "evaluate__clip": "gone"},
            r"^config\.evaluate\.clip is '.*gone': ",
        ),
        (
            {"evaluate__captions": "data", "sample__negative_prompt": "x"},
            r"^config\.sample\.negative_prompt is 'x'",
        ),
        (
            {"evaluate__captions": "other"},
            r"^config\.evaluate\.captions is '.*other', whose captions were encoded with",
        ),
        (
            {"evaluate__captions": "pixels"},
            r"^config\.evaluate\.captions is '.*pixels', which holds no captions",
        ),
    ],
)
def test_texts_that_can_not_be_drawn_or_scored_are_refused(
    root, tmp_path, changes, message, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_others(root)
    for name in ("evaluate__captions", "evaluate__clip"):
        if name in changes:
            changes = changes | {name: str(root / changes[name])}
    with pytest.raises(UserError, match=message):
        report_of(root, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def write_others(root: pathlib.Path) -> None:
    """Captions of another tower, and a data set without any."""
    if (root / "other").exists():
        return
    write_clip(root / "other_clip")
    config = json.loads((root / "other_clip" / "config.json").read_text())
    (root / "other_clip" / "config.json").write_text(
        json.dumps(config | {"num_attention_heads": 2})
    )
    prepare.run(
        text_experiment(
            root, text_encoder__name=str(root / "other_clip"), prepare__out=str(root / "other")
        ),
        root,
    )
    plain = {
        "text_encoder__name": "",
        "prepare__source": str(root / "coco" / "train2017"),
        "prepare__split": "train",
    }
    prepare.run(text_experiment(root, prepare__out=str(root / "pixels"), **plain), root)


def test_captions_for_a_model_of_labels_are_refused(root, tmp_path):
    run = write_run(tmp_path)
    with pytest.raises(
        UserError,
        match=r"^config\.evaluate\.captions is '.*data', expected none for a model without",
    ):
        evaluate.run(digits_evaluation(evaluate__captions=str(root / "data")), run)
