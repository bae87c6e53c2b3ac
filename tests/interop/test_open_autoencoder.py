import dataclasses
import json

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from tests.interop.pth_files import write_tree
from tests.interop.test_autoencoder import DIFFUSERS, golden_weights
from tests.reference_weights import formula_weight, nhwc, read_golden
from uvit_jax.errors import UserError
from uvit_jax.interop.autoencoder import open_autoencoder
from uvit_jax.models.frozen.tiled_decoding import decode_tiled

WEIGHTS = "diffusion_pytorch_model.safetensors"
KL_CONFIG = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "scaling_factor": 0.5,
}
TINY_CONFIG = {
    "_class_name": "AutoencoderTiny",
    "encoder_block_out_channels": [8] * 4,
    "latent_channels": 4,
    "num_encoder_blocks": [1, 3, 3, 3],
    "scaling_factor": 1.0,
}


@pytest.fixture(scope="module")
def compvis(golden_dir):
    """A small KL autoencoder under CompVis names."""
    return golden_weights(golden_dir, "autoencoder_tiny")


@pytest.fixture(scope="module")
def diffusers(compvis):
    """The same network under diffusers names."""
    renamed = {}
    for key, array in compvis.items():
        for old, new in (
            ("attn_1.q.", "attn_1.to_q."),
            ("attn_1.k.", "attn_1.to_k."),
            ("attn_1.v.", "attn_1.to_v."),
        ):
            key = key.replace(old, new)
        key = key.replace("attn_1.proj_out.", "attn_1.to_out.0.")
        for old, new in DIFFUSERS.items():
            key = key.replace(old, new)
        linear = "attentions" in key and array.ndim == 4
        renamed[key] = np.ascontiguousarray(array[:, :, 0, 0]) if linear else array
    return renamed


@pytest.fixture(scope="module")
def taesd(golden_dir):
    """A small member of the TAESD family under diffusers names."""
    return golden_weights(golden_dir, "taesd")


def own_names(taesd):
    """The two files of the family itself: the decoder there counts one layer more."""
    states = {"encoder": {}, "decoder": {}}
    for key, array in taesd.items():
        part, _, number, rest = key.split(".", 3)
        states[part][f"{int(number) + (part == 'decoder')}.{rest}"] = array
    return states


def write(folder, weights, config=None, name=WEIGHTS):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def assert_same_network(first, second):
    assert first.sha256 == second.sha256
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert jax.tree.structure(first.params) == jax.tree.structure(second.params)


def test_diffusers_tiny_autoencoder_equals_the_reference(golden_dir, taesd, tmp_path):
    golden, _ = read_golden(golden_dir / "taesd.safetensors")
    autoencoder = open_autoencoder(write(tmp_path, taesd, TINY_CONFIG))
    latents = jax.jit(autoencoder.encode)(autoencoder.params, nhwc(golden["input.x"]))
    np.testing.assert_allclose(latents, nhwc(golden["latents"]), atol=2e-5, rtol=0)
    image = jax.jit(autoencoder.decode)(autoencoder.params, nhwc(golden["input.z"]))
    expected = nhwc(golden["decoded"])
    np.testing.assert_allclose(image, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    assert not autoencoder.has_variance
    assert (autoencoder.scale, autoencoder.shift) == (None, 0)
    assert (autoencoder.latent_channels, autoencoder.factor) == (4, 8)


def test_every_publication_of_a_tiny_autoencoder_is_the_same_network(taesd, tmp_path):
    expected = open_autoencoder(write(tmp_path / "diffusers", taesd, TINY_CONFIG))
    for part, state in own_names(taesd).items():
        write(tmp_path / "own", state, name=f"taesd_{part}.safetensors")
    for name in (
        "own",
        "own/taesd_encoder.safetensors",
        "own/taesd_decoder.safetensors",
        f"diffusers/{WEIGHTS}",
    ):
        opened = open_autoencoder(str(tmp_path / name))
        assert opened.name == str(tmp_path / name)
        assert_same_network(opened, expected)


def test_every_publication_of_a_kl_autoencoder_is_the_same_network(compvis, diffusers, tmp_path):
    expected = open_autoencoder(
        f"{write(tmp_path / 'compvis', compvis, name='kl.safetensors')}/kl.safetensors"
    )
    write(tmp_path / "plain", diffusers, KL_CONFIG)
    write(tmp_path / "pipeline" / "vae", diffusers, KL_CONFIG)
    scales = {"plain": 0.5, f"plain/{WEIGHTS}": 0.5, "pipeline": 0.5, "pipeline/vae": 0.5}
    for name, scale in scales.items():
        opened = open_autoencoder(str(tmp_path / name))
        assert_same_network(opened, expected)
        assert (opened.scale, opened.shift) == (scale, 0)
    assert expected.has_variance
    assert (expected.scale, expected.shift, expected.latent_channels, expected.factor) == (
        0.18215,
        0,
        4,
        4,
    )
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(expected.params))


def test_a_hub_name_opens_from_the_cache(taesd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    model, commit = (
        tmp_path / "hub" / "models--org--tiny",
        "0123456789abcdef0123456789abcdef01234567",
    )
    write(model / "snapshots" / commit, taesd, TINY_CONFIG)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    opened = open_autoencoder("org/tiny")
    assert opened.name == "org/tiny"
    assert_same_network(opened, open_autoencoder(str(model / "snapshots" / commit)))
    assert_same_network(opened, open_autoencoder(f"org/tiny/{WEIGHTS}"))


def test_the_hash_is_of_what_latents_depend_on(compvis, tmp_path):
    def hash_of(**changed):
        folder = write(tmp_path, {**compvis, **changed}, name="kl.safetensors")
        return open_autoencoder(f"{folder}/kl.safetensors").sha256

    def other(name):
        return {name: compvis[name] + np.float32(1e-3)}

    before = hash_of()
    assert len(before) == 64
    assert hash_of(**other("decoder.conv_in.weight")) == before
    assert hash_of(**other("post_quant_conv.bias")) == before
    assert hash_of(**other("encoder.conv_in.weight")) != before
    assert hash_of(**other("quant_conv.bias")) != before


def test_without_a_scale_in_the_config_it_is_stable_diffusions(diffusers, tmp_path):
    config = {key: value for key, value in KL_CONFIG.items() if key != "scaling_factor"}
    assert open_autoencoder(write(tmp_path, diffusers, config)).scale == 0.18215


def test_an_autoencoder_without_quant_convs_and_with_a_shift_opens(diffusers, tmp_path):
    weights = {key: array for key, array in diffusers.items() if "quant_conv" not in key}
    config = {
        **KL_CONFIG,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.25,
    }
    opened = open_autoencoder(write(tmp_path, weights, config))
    assert (opened.scale, opened.shift) == (0.5, 0.25)
    moments = jax.eval_shape(opened.encode, opened.params, np.zeros((1, 8, 12, 3), np.float32))
    assert moments.shape == (1, 2, 3, 8)
    assert jax.eval_shape(
        opened.decode, opened.params, np.zeros((1, 2, 3, 4), np.float32)
    ).shape == (1, 8, 12, 3)


def test_latents_larger_than_a_tile_are_decoded_tile_by_tile(taesd, tmp_path):
    opened = open_autoencoder(write(tmp_path, taesd, TINY_CONFIG))
    z = np.random.default_rng(0).standard_normal((1, 6, 5, 4), dtype=np.float32)
    whole = jax.jit(opened.decode)(opened.params, z)
    tiled = jax.jit(dataclasses.replace(opened, tile=4, overlap=2).decode)(opened.params, z)
    expected = jax.jit(
        lambda params, z: decode_tiled(lambda z: opened.decode(params, z), z, tile=4, overlap=2)
    )
    np.testing.assert_allclose(tiled, expected(opened.params, z), atol=1e-5)
    assert np.abs(tiled - whole).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "VQModel"},
            'config.json: _class_name is "VQModel", expected AutoencoderKL or AutoencoderTiny',
        ),
        (
            {"_class_name": "AutoencoderTiny"},
            '_class_name is "AutoencoderTiny", expected "AutoencoderKL" for the weights',
        ),
        ({"latent_channels": 16}, "latent_channels is 16, expected 4 for the weights beside it"),
        (
            {"block_out_channels": [64, 64]},
            r"block_out_channels is \[64, 64\], expected \[32, 64, 64\]",
        ),
        ({"norm_num_groups": 16}, "norm_num_groups is 16, expected 32"),
        ({"latents_mean": [0.0] * 4}, r"latents_mean is \[0\.0, .*\], expected null"),
        ({"scaling_factor": "1"}, 'scaling_factor is "1", expected a positive number'),
        ({"scaling_factor": 0}, "scaling_factor is 0, expected a positive number"),
        ({"shift_factor": [1]}, r"shift_factor is \[1\], expected a number"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(diffusers, tmp_path, changes, message):
    folder = write(tmp_path, diffusers, {**KL_CONFIG, **changes})
    with pytest.raises(UserError, match=message) as refused:
        open_autoencoder(folder)
    assert str(refused.value).startswith(f"{folder}/config.json: ")


@pytest.mark.parametrize("content", ["{", "[]", "3", "\xff"])
def test_a_config_that_is_not_one_is_refused(diffusers, tmp_path, content):
    folder = write(tmp_path, diffusers)
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json.*(not JSON|_class_name is)"):
        open_autoencoder(folder)


def test_a_tiny_config_that_contradicts_the_weights_is_refused(taesd, tmp_path):
    folder = write(tmp_path, taesd, {**TINY_CONFIG, "num_encoder_blocks": [1, 3, 3]})
    with pytest.raises(
        UserError, match=r"num_encoder_blocks is \[1, 3, 3\], expected \[1, 3, 3, 3\]"
    ):
        open_autoencoder(folder)


def test_weights_of_another_network_are_refused_with_their_file(tmp_path):
    folder = write(
        tmp_path, {"pos_embed": formula_weight("pos_embed", (1, 4, 8))}, name="uvit.safetensors"
    )
    with pytest.raises(
        UserError, match=r"uvit\.safetensors: the weights hold pos_embed, expected a KL autoencoder"
    ):
        open_autoencoder(f"{folder}/uvit.safetensors")


def test_folders_without_an_autoencoder_or_with_several_are_refused(taesd, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        UserError, match=r"holds notes\.txt, expected an autoencoder: diffusion_pytorch_model"
    ):
        open_autoencoder(str(tmp_path))
    for member in ("taesd", "taesdxl"):
        for part, state in own_names(taesd).items():
            write(tmp_path, state, name=f"{member}_{part}.safetensors")
    with pytest.raises(
        UserError, match=r"holds 2 autoencoders \(taesd_decoder\.safetensors, taesdxl_decoder"
    ):
        open_autoencoder(str(tmp_path))
    assert open_autoencoder(f"{tmp_path}/taesdxl_encoder.safetensors").latent_channels == 4
    (tmp_path / "taesd_decoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights file .*taesd_decoder\.safetensors"):
        open_autoencoder(f"{tmp_path}/taesd_encoder.safetensors")


def test_an_unknown_dtype_is_refused(taesd, tmp_path):
    with pytest.raises(UserError, match="dtype is 'float64', expected one of"):
        open_autoencoder(write(tmp_path, taesd, TINY_CONFIG), dtype="float64")


# --- Files as training programs, pipelines and downloads leave them.


@pytest.mark.parametrize("variant", ["fp16", "non_ema", "bf16"])
def test_a_variant_is_read_where_it_is_the_only_one(compvis, diffusers, tmp_path, variant):
    name = f"diffusion_pytorch_model.{variant}.safetensors"
    half = {key: array.astype(np.float16) for key, array in diffusers.items()}
    opened = open_autoencoder(write(tmp_path / "vae", half, KL_CONFIG, name))
    assert opened.scale == 0.5
    assert {leaf.dtype for leaf in jax.tree.leaves(opened.params)} == {np.dtype(np.float32)}
    assert_same_network(opened, open_autoencoder(str(tmp_path)))
    assert_same_network(opened, open_autoencoder(f"{tmp_path}/vae/{name}"))
    whole = open_autoencoder(write(tmp_path / "vae", diffusers, KL_CONFIG))  # beside the variant
    assert whole.sha256 != opened.sha256


def test_variants_without_the_whole_are_named(diffusers, tmp_path):
    for variant in ("fp16", "non_ema"):
        write(tmp_path, diffusers, KL_CONFIG, f"diffusion_pytorch_model.{variant}.safetensors")
    with pytest.raises(
        UserError, match=r"holds 2 autoencoders \(.*\.fp16\.safetensors, .*\.non_ema\.safetensors\)"
    ):
        open_autoencoder(str(tmp_path))


def test_the_autoencoder_of_a_whole_model_is_found_in_its_file(compvis, tmp_path):
    state = {f"first_stage_model.{key}": array for key, array in compvis.items()}
    state |= {
        "model.diffusion_model.out.weight": np.ones(3, np.float32),
        "betas": np.ones(5, np.float32),
    }
    state |= {"model_ema.diffusion_modeloutweight": np.ones(3, np.float32)}
    write_tree(tmp_path / "sd.ckpt", {"state_dict": state, "epoch": 3})
    expected = open_autoencoder(f"{write(tmp_path, compvis, name='kl.safetensors')}/kl.safetensors")
    assert_same_network(open_autoencoder(f"{tmp_path}/sd.ckpt"), expected)
    write_tree(
        tmp_path / "wrapped.pt",
        {"state_dict": {f"module._orig_mod.{k}": a for k, a in compvis.items()}},
    )
    assert_same_network(open_autoencoder(f"{tmp_path}/wrapped.pt"), expected)


def test_trained_and_averaged_weights_of_an_autoencoder_are_named(compvis, tmp_path):
    average = {f"model_ema.{key.replace('.', '')}": array for key, array in compvis.items()}
    write_tree(tmp_path / "kl.ckpt", {"state_dict": compvis | average})
    with pytest.raises(
        UserError, match=r"holds 2 networks of this kind, at the top and 'model_ema', expected one"
    ):
        open_autoencoder(f"{tmp_path}/kl.ckpt")


def test_a_folder_with_one_file_of_weights_is_that_file(compvis, diffusers, tmp_path):
    write(tmp_path / "one", compvis, name="autoencoder_kl.safetensors")
    assert open_autoencoder(f"{tmp_path}/one").scale == 0.18215
    write(tmp_path / "one", compvis, name="autoencoder_kl_ema.safetensors")
    with pytest.raises(
        UserError,
        match=r"holds 2 files of weights \(autoencoder_kl\.safetensors, autoencoder_kl_ema",
    ):
        open_autoencoder(f"{tmp_path}/one")
    # Its factor stands in the config beside it, whatever the file is called.
    write(tmp_path / "named", diffusers, KL_CONFIG, "sdxl_vae.safetensors")
    assert open_autoencoder(f"{tmp_path}/named").scale == 0.5
    assert open_autoencoder(f"{tmp_path}/named/sdxl_vae.safetensors").scale == 0.5
    (tmp_path / "one" / "config.json").write_text('{"model": 3}')  # some other program's
    assert open_autoencoder(f"{tmp_path}/one/autoencoder_kl.safetensors").scale == 0.18215


def test_weights_in_several_files_are_put_together(compvis, diffusers, tmp_path):
    names, index = list(diffusers), {}
    for i in range(2):
        file = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        write(tmp_path, {name: diffusers[name] for name in names[i::2]}, KL_CONFIG, file)
        index |= dict.fromkeys(names[i::2], file)
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    expected = open_autoencoder(
        f"{write(tmp_path / 'kl', compvis, name='kl.safetensors')}/kl.safetensors"
    )
    assert_same_network(open_autoencoder(str(tmp_path)), expected)


def test_a_pointer_in_place_of_a_config_is_named(diffusers, tmp_path):
    folder = write(tmp_path, diffusers)
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"config\.json is a git-LFS pointer"):
        open_autoencoder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: np.where(a > 0, a, np.nan),
            r"conv_in\.bias has \d+ values NaN or infinite of 32, expected none",
        ),
        (lambda a: a.astype(np.int8), r"conv_in\.bias is of dtype int8, expected floating point"),
    ],
)
def test_weights_that_are_not_numbers_are_refused(compvis, tmp_path, change, message):
    name = "encoder.conv_in.bias"
    write(tmp_path, compvis | {name: change(compvis[name])}, name="kl.safetensors")
    with pytest.raises(UserError, match=message):
        open_autoencoder(f"{tmp_path}/kl.safetensors")
