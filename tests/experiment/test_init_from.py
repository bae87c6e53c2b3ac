import json
import logging
import pathlib

import jax
import numpy as np
import pytest

from tests.interop.pth_files import write_tree, write_weights
from tests.jobs.evaluate_runs import assembled_of, evaluation, weights_of
from tests.reference_weights import uvit_weights
from uvit_jax.errors import UserError
from uvit_jax.experiment.init_from import find_weights
from uvit_jax.experiment.weights import check_init_from, initial_weights
from uvit_jax.interop import official


@pytest.fixture
def weights(tmp_path) -> pathlib.Path:
    return write_weights(tmp_path / "w.pth", {"pos_embed": np.ones((1, 3, 8), np.float32)})


def make_workdir(folder: pathlib.Path) -> pathlib.Path:
    (folder / "checkpoints" / "500" / "ema").mkdir(parents=True)
    (folder / "config.json").write_text('{"model": {}, "diffusion": {}}')
    return folder


def put(folder: pathlib.Path, name: str, weights: pathlib.Path) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(weights.read_bytes())
    return folder / name


def test_files_workdirs_and_folders_of_one_file_are_found(tmp_path, weights):
    assert find_weights(str(weights)) == weights
    run = make_workdir(tmp_path / "run")
    assert find_weights(str(run)) == run
    file = put(tmp_path / "one", "imagenet256_uvit_huge.pth", weights)
    (tmp_path / "one" / "README.md").touch()
    assert find_weights(str(tmp_path / "one")) == file


def test_of_a_step_of_the_official_code_the_weights_asked_for_are_found(tmp_path, weights):
    step = tmp_path / "ckpts" / "500000.ckpt"
    for name in ("nnet.pth", "nnet_ema.pth", "optimizer.pth", "step.pth"):
        put(step, name, weights)
    assert find_weights(str(step)) == step / "nnet_ema.pth"
    assert find_weights(str(step), "params") == step / "nnet.pth"
    put(tmp_path / "ckpts" / "50000.ckpt", "nnet_ema.pth", weights)
    (tmp_path / "config").mkdir()
    weights.unlink()
    for folder in (tmp_path, tmp_path / "ckpts"):
        with pytest.raises(UserError, match=rf"expected a workdir .*: did you mean {step}\?$"):
            find_weights(str(folder))


@pytest.mark.parametrize(
    ("inside", "advice"),
    [
        ("checkpoints", r"expected the workdir itself$"),
        (
            "checkpoints/500",
            r"expected the workdir itself \(and for a sample of this step "
            r"config\.sample\.step=500\)$",
        ),
        ("checkpoints/500/ema", r"expected .*config\.sample\.step=500\)$"),
    ],
)
def test_a_folder_inside_of_a_workdir_is_told_as_such(tmp_path, inside, advice):
    run = make_workdir(tmp_path / "run")
    with pytest.raises(UserError, match=rf"it is inside of the workdir {run}, {advice}"):
        check_init_from(str(run / inside))


def test_a_folder_of_runs_says_which_is_meant(tmp_path):
    run = make_workdir(tmp_path / "digits")
    with pytest.raises(
        UserError, match=rf"the folder holds digits, expected a workdir .*: did you mean {run}\?$"
    ):
        check_init_from(str(tmp_path))


def test_a_run_of_another_trainer_is_told_by_its_newest_file(tmp_path, weights):
    for name in ("0050000.pt", "0100000.pt"):
        put(tmp_path / "results" / "checkpoints", name, weights)
    (tmp_path / "results" / "log.txt").touch()
    newest = tmp_path / "results" / "checkpoints" / "0100000.pt"
    with pytest.raises(
        UserError, match=rf"the folder holds checkpoints, log\.txt, .*: did you mean {newest}\?$"
    ):
        check_init_from(str(tmp_path / "results"))
    with pytest.raises(
        UserError, match=r"holds 2 files of weights \(0050000\.pt, 0100000\.pt\): name one"
    ):
        check_init_from(str(newest.parent))
    assert find_weights(str(newest)) == newest


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"the folder holds nothing, expected a workdir \(config\.json and checkpoints/\)"),
        (
            {"config.json": {"model": {}, "diffusion": {}}},
            "the workdir of a run that has saved no checkpoint yet",
        ),
        (
            {"config.json": {"_class_name": "UVit2DModel"}, "a.pth": 0},
            "it is a model of the class UVit2DModel",
        ),
        ({"config.json": {"architectures": ["CLIPModel"]}}, "it is a model of the class CLIPModel"),
        ({"model_index.json": {}}, "it is a pipeline of diffusers"),
        ({"_METADATA": {}, "manifest.ocdbt": 0}, "it is a checkpoint of Orbax"),
        (
            {"a.pth": 0, "b.safetensors": 0, "c.txt": 0},
            r"holds 2 files of weights \(a\.pth, b\.safetensors\): name one",
        ),
    ],
)
def test_other_folders_are_named_by_what_they_are(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^config\.init_from is '{tmp_path}': .*{said}"):
        check_init_from(str(tmp_path))


def test_what_is_no_path_or_no_weights_is_told_before_anything_is_read(tmp_path, weights):
    check_init_from("")
    with pytest.raises(
        UserError,
        match=r"^config\.init_from is 'https://.*', expected .* on this machine: download it",
    ):
        check_init_from("https://drive.google.com/file/d/1")
    with pytest.raises(
        UserError,
        match=r"^config\.init_from is 'org/uvit', expected a weights file or a workdir: there",
    ):
        check_init_from("org/uvit")
    with pytest.raises(
        UserError,
        match=rf"there is no file or folder {tmp_path}/w\.ptj \(did you mean {weights}\?\)",
    ):
        check_init_from(str(tmp_path / "w.ptj"))
    weights.write_bytes(b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    with pytest.raises(
        UserError,
        match=r"^config\.init_from is '.*w\.pth': .* is a web page \('Google Drive - Virus",
    ):
        check_init_from(str(weights))


def test_a_file_of_both_weights_gives_those_that_are_sampled_with(tmp_path, caplog):
    experiment = evaluation()
    own, average = (uvit_weights(experiment.model, seed) for seed in (1, 2))
    path = write_tree(
        tmp_path / "w.pt", {"model": own, "ema": average, "opt": {"param_groups": []}}
    )
    template = assembled_of(experiment).abstract_params
    with caplog.at_level(logging.INFO, "uvit_jax"):
        started = initial_weights(template, experiment.model, str(path))
    assert "holds weights at 'model' and 'ema': 'ema' is taken" in caplog.text
    for weights, expected in (("ema", average), ("params", own)):
        asked = evaluation(init_from=str(path), sample__weights=weights)
        opened = weights_of(asked, tmp_path / "run")
        jax.tree.map(
            np.testing.assert_array_equal,
            opened.params,
            official.params(expected, experiment.model),
        )
    jax.tree.map(np.testing.assert_array_equal, started, official.params(average, experiment.model))
