"""Weights as training programs and pipelines wrap them."""

import json
import logging

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.interop.pth_files import Storage, tensor, write_pth, write_tree
from tests.reference_weights import uvit_weights
from uvit_jax.errors import UserError
from uvit_jax.interop import official
from uvit_jax.interop.weights_file import read_arrays
from uvit_jax.models.uvit import UViTConfig

CONFIG = UViTConfig(image_size=4, in_channels=1, embed_dim=8, depth=3, num_heads=2, num_classes=4)
OWN, EMA = uvit_weights(CONFIG, 1), uvit_weights(CONFIG, 2)


def under(prefix, weights):
    return {f"{prefix}{name}": array for name, array in weights.items()}


def dotless(weights):
    """latent-diffusion's moving average."""
    return {f"model_ema.{name.replace('.', '')}": array for name, array in weights.items()}


def assert_same(read, expected):
    assert read.keys() == expected.keys()
    assert all(np.array_equal(read[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "tree",
    [
        under("module.", OWN),
        under("_orig_mod.", OWN),
        under("module._orig_mod.", OWN),
        under("_orig_mod.module.", OWN),
        under("ema.", OWN),
        under("nnet.module.", OWN),
        {name.replace("blocks.", "blocks._orig_mod."): array for name, array in OWN.items()},
        {"model": OWN, "step": 3},
        {"model": under("module.", OWN), "opt": {"state": {0: {"m": np.zeros(2, np.float32)}}}},
        {"ema": OWN, "opt": {"param_groups": []}},
        {"state_dict": under("model.", OWN), "epoch": 3, "global_step": np.zeros((), np.int64)},
        {
            "state_dict": under("nnet.", OWN)
            | {"autoencoder.encoder.weight": np.zeros(3, np.float32)}
        },
        {"state_dict": under("model.diffusion_model.", OWN) | {"betas": np.zeros(3, np.float32)}},
        {"n_averaged": np.zeros((), np.int64)} | under("module.", OWN),
        {"checkpoint": {"model": {"net": OWN}}},
    ],
    ids=lambda tree: ",".join(list(tree)[:2]),
)
def test_what_is_around_the_only_network_is_left_out(tmp_path, tree):
    assert_same(official.read_weights(write_tree(tmp_path / "w.pt", tree)), OWN)


@pytest.mark.parametrize(
    "tree",
    [
        {"model": OWN, "ema": EMA, "opt": {"param_groups": []}},
        {"nnet": under("module.", OWN), "nnet_ema": EMA},
        {"state_dict": under("model.", OWN), "ema_state_dict": under("model.", EMA)},
        {
            "state_dict": under("model.", OWN)
            | dotless(EMA)
            | {"model_ema.decay": np.ones((), np.float32)}
        },
        OWN | under("ema.", EMA),
        under("online_model.", OWN) | under("ema_model.", EMA),
    ],
    ids=lambda tree: ",".join(list(tree)[:2]),
)
def test_of_trained_and_averaged_weights_those_asked_for_are_read_and_logged(
    tmp_path, tree, caplog
):
    path = write_tree(tmp_path / "w.pt", tree)
    with caplog.at_level(logging.INFO, "uvit_jax"):
        assert_same(official.read_weights(path), EMA)
    assert "w.pt holds weights at" in caplog.text
    assert "ema" in caplog.text
    assert_same(official.read_weights(path, weights="params"), OWN)


@pytest.mark.parametrize(
    "tree", [{"student": OWN, "teacher": EMA}, {"model": OWN, "ema": EMA, "ema_slow": EMA}]
)
def test_several_networks_are_named_and_none_is_guessed(tmp_path, tree):
    named = " and ".join(map(repr, tree))
    with pytest.raises(
        UserError, match=rf"w\.pt holds \d networks of this kind, at {named}, expected one: save"
    ):
        official.read_weights(write_tree(tmp_path / "w.pt", tree))


def test_an_average_without_names_is_not_passed_over(tmp_path):
    average = {
        "decay": 0.999,
        "shadow_params": [as_tensor(i, array) for i, array in enumerate(EMA.values())],
    }
    tree = {
        "model": {name: as_tensor(f"m{name}", array) for name, array in OWN.items()},
        "ema": average,
    }
    storages = [
        inner.arguments[0] for inner in (*tree["model"].values(), *average["shadow_params"])
    ]
    path = write_pth(tmp_path / "w.pt", tree, storages)
    with pytest.raises(
        UserError,
        match=r"holds trained weights at 'model' and an average .* \(ema\.shadow_params\.0, ",
    ):
        official.read_weights(path)
    assert_same(official.read_weights(path, weights="params"), OWN)


def as_tensor(key, array):
    array = np.ascontiguousarray(array)
    return tensor(Storage(str(key), array), array.shape, tuple(step // 4 for step in array.strides))


def test_a_network_with_one_kind_of_weights_is_not_chosen_from_an_average(tmp_path):
    # Nothing says which of both an autoencoder or a text tower should be.
    with pytest.raises(UserError, match="holds 2 networks of this kind, at 'model' and 'ema'"):
        read_arrays(write_tree(tmp_path / "w.pt", {"model": OWN, "ema": EMA}), ("pos_embed",))


def test_prefixes_in_safetensors_are_left_out_too(tmp_path):
    wrapped = {name: np.ascontiguousarray(array) for name, array in under("module.", OWN).items()}
    save_file(wrapped, tmp_path / "w.safetensors")
    assert_same(official.read_weights(tmp_path / "w.safetensors"), OWN)


def test_other_kinds_of_weights_are_refused():
    with pytest.raises(UserError, match="weights is 'average', expected one of 'ema', 'params'"):
        official.read_weights("w.pth", weights="average")


# --- Weights in several files.


@pytest.fixture
def index(tmp_path):
    names = list(OWN)
    files = {name: f"w-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file(
            {name: np.ascontiguousarray(OWN[name]) for name in names if files[name] == file},
            tmp_path / file,
        )
    path = tmp_path / "w.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return path


def test_weights_in_several_files_are_read_by_their_index_or_one_of_them(index):
    assert_same(official.read_weights(index), OWN)
    assert_same(official.read_weights(index.with_name("w-00001-of-00002.safetensors")), OWN)


def test_an_index_that_leads_nowhere_is_refused(index):
    index.with_name("w-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"names 2 files, of which w-00002-of-00002\.safetensors is not beside it"
    ):
        official.read_weights(index)
    for content, said in (
        ('{"weight_map": {"a": "../x.pth"}}', "expected names of files beside it"),
        ("[]", "is not an index of weights"),
        ("<!doctype html>", "is a web page"),
    ):
        index.write_text(content)
        with pytest.raises(UserError, match=said):
            official.read_weights(index)
