import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.reference_weights import formula_weight, nhwc, read_golden
from uvit_jax.data.image_sources.crops import adm
from uvit_jax.errors import UserError
from uvit_jax.interop.autoencoder import load_autoencoder, load_tiny_autoencoder
from uvit_jax.interop.official import read_weights
from uvit_jax.models.frozen.autoencoder import AutoencoderConfig
from uvit_jax.models.frozen.tiny_autoencoder import TinyAutoencoderConfig
from uvit_jax.models.latents import Normalization, sample_moments


def golden_weights(folder, name):
    shapes = json.loads((folder / f"{name}_keys.json").read_text())
    return {key: formula_weight(key, tuple(shape)) for key, shape in shapes.items()}


def run(model, method, *args):
    graphdef, params = nnx.split(model)
    call = jax.jit(lambda params, *args: getattr(nnx.merge(graphdef, params), method)(*args))
    return np.asarray(call(params, *args))


def check_moments_and_image(folder, name, atol):
    golden, metadata = read_golden(folder / f"{name}.safetensors")
    model = load_autoencoder(golden_weights(folder, name))
    np.testing.assert_allclose(
        run(model, "encode", nhwc(golden["input.x"])), nhwc(golden["moments"]), atol=atol, rtol=0
    )
    if "z" in golden:
        mean, image = nhwc(golden["z"]) / float(metadata["scale_factor"]), golden["decoded"]
    else:
        mean, image = np.split(nhwc(golden["moments"]), 2, axis=-1)[0], golden["decoded_from_mean"]
    np.testing.assert_allclose(run(model, "decode", mean), nhwc(image), atol=atol, rtol=0)
    return model, golden, metadata


@pytest.fixture(scope="module")
def tiny_weights(golden_dir):
    return golden_weights(golden_dir, "autoencoder_tiny")


@pytest.fixture(scope="module")
def tiny_params(tiny_weights):
    return nnx.state(load_autoencoder(tiny_weights))


def test_compvis_network_equals_the_reference(golden_dir):
    model, golden, metadata = check_moments_and_image(golden_dir, "autoencoder_tiny", 5e-5)
    expected = json.loads(metadata["config"])
    assert model.config == AutoencoderConfig(
        channels=expected["ch"],
        multipliers=tuple(expected["ch_mult"]),
        num_res_blocks=expected["num_res_blocks"],
        z_channels=expected["z_channels"],
    )
    # Without variance a draw is the scaled mean.
    moments = nhwc(golden["moments"]).copy()
    moments[..., 4:] = -60
    z = sample_moments(
        moments, jax.random.key(0), Normalization.constant(float(metadata["scale_factor"]), 4)
    )
    np.testing.assert_allclose(z, nhwc(golden["z"]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder_full", "autoencoder_diffusers"])
def test_full_size_network_equals_the_reference(shared_golden_dir, name):
    model, _, _ = check_moments_and_image(shared_golden_dir, name, 2e-4)
    assert model.config == AutoencoderConfig()


DIFFUSERS = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "nin_shortcut": "conv_shortcut",
}
DIFFUSERS |= {
    "norm_out": "conv_norm_out",
    "attn_1.norm": "attn_1.group_norm",
    "mid.attn_1": "mid_block.attentions.0",
}
DIFFUSERS |= {f"down.{i}.block": f"down_blocks.{i}.resnets" for i in range(3)}
DIFFUSERS |= {f"down.{i}.downsample": f"down_blocks.{i}.downsamplers.0" for i in range(3)}
DIFFUSERS |= {f"up.{i}.block": f"up_blocks.{2 - i}.resnets" for i in range(3)}
DIFFUSERS |= {f"up.{i}.upsample": f"up_blocks.{2 - i}.upsamplers.0" for i in range(3)}


NEW, OLD = ("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value", "proj_attn")


@pytest.mark.parametrize(
    ("parts", "linear"), [(NEW, True), (OLD, True), (OLD, False)], ids=["new", "old", "old_conv"]
)
def test_diffusers_names_of_any_age_give_the_network_of_the_compvis_names(
    tiny_weights, tiny_params, parts, linear
):
    renamed = {}
    for key, array in tiny_weights.items():
        attention = "attn_1" in key and "norm" not in key
        for old, new in zip(("q", "k", "v", "proj_out"), parts, strict=True):
            key = key.replace(f"attn_1.{old}.", f"attn_1.{new}.")
        for old, new in DIFFUSERS.items():
            key = key.replace(old, new)
        renamed[key] = array[:, :, 0, 0] if attention and linear and array.ndim == 4 else array
    assert not set(renamed) & {key for key in tiny_weights if "mid." in key}
    jax.tree.map(np.testing.assert_array_equal, nnx.state(load_autoencoder(renamed)), tiny_params)


def test_bfloat16_comes_close_and_gives_float32(golden_dir, tiny_weights):
    golden, _ = read_golden(golden_dir / "autoencoder_tiny.safetensors")
    model = load_autoencoder(tiny_weights, dtype="bfloat16")
    moments, expected = run(model, "encode", nhwc(golden["input.x"])), nhwc(golden["moments"])
    assert moments.dtype == np.float32
    assert 1e-4 < np.abs(moments - expected).max() < 0.05 * np.abs(expected).max()
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {np.dtype(np.float32)}


def test_what_only_training_needs_is_left_out(tiny_weights, tiny_params):
    training = {
        "loss.logvar": np.zeros(()),
        "model_ema.decay": np.ones(()),
        "model_ema.num_updates": np.ones((), int),
    }
    loaded = load_autoencoder({**tiny_weights, **training})
    assert jax.tree.structure(nnx.state(loaded)) == jax.tree.structure(tiny_params)


def test_a_network_without_attention_is_known_by_its_names(tiny_weights):
    weights = {key: array for key, array in tiny_weights.items() if "attn_1" not in key}
    assert not load_autoencoder(weights).config.middle_attention


def test_arrays_missing_unexpected_or_of_another_shape_are_named(tiny_weights):
    weights = dict(tiny_weights)
    weights["decoder.mid.attn_2.q.bias"] = weights.pop("decoder.mid.attn_1.q.bias")
    with pytest.raises(
        UserError,
        match=r"1 missing \(first: decoder\.mid\.attn_1\.q\.bias\), 1 unexpected \(first: deco",
    ):
        load_autoencoder(weights)
    with pytest.raises(UserError, match=r"quant_conv\.bias has shape \(6,\), expected \(8,\)$"):
        load_autoencoder({**tiny_weights, "quant_conv.bias": np.zeros(6, np.float32)})
    with pytest.raises(
        UserError, match=r"attn_1\.q\.weight has shape .*, expected \(64, 64, 1, 1\) or \(64, 64\)$"
    ):
        load_autoencoder(
            {**tiny_weights, "encoder.mid.attn_1.q.weight": np.zeros((64, 64, 3, 3), np.float32)}
        )


def test_weights_of_another_kind_of_network_are_refused():
    with pytest.raises(UserError, match=r"hold pos_embed, expected a KL autoencoder"):
        load_autoencoder({"pos_embed": np.zeros((1, 4, 8), np.float32)})
    with pytest.raises(UserError, match=r"they lack encoder\.0\.weight"):
        load_tiny_autoencoder({}, {})


def tiny_family_weights(z_channels, d=8):
    """Weights of the members without a norm, by the numbers of their layers."""
    shapes = {"encoder": {}, "decoder": {}}
    convs = {
        "encoder": {0: (d, 3), 14: (z_channels, d)},
        "decoder": {1: (d, z_channels), 19: (3, d)},
    }
    resamplings = {"encoder": (2, 6, 10), "decoder": (7, 12, 17)}
    blocks = {
        "encoder": (1, 3, 4, 5, 7, 8, 9, 11, 12, 13),
        "decoder": (3, 4, 5, 8, 9, 10, 13, 14, 15, 18),
    }
    for part, out in shapes.items():
        for i, (c_out, c_in) in convs[part].items():
            out |= {f"{i}.weight": (c_out, c_in, 3, 3), f"{i}.bias": (c_out,)}
        out |= {f"{i}.weight": (d, d, 3, 3) for i in resamplings[part]}
        for name in (f"{i}.conv.{j}" for i in blocks[part] for j in (0, 2, 4)):
            out |= {f"{name}.weight": (d, d, 3, 3), f"{name}.bias": (d,)}
    return [
        {key: formula_weight(key, shape) for key, shape in out.items()} for out in shapes.values()
    ]


@pytest.mark.parametrize("z_channels", [4, 16])
def test_members_of_the_tiny_family_without_a_norm_load_by_their_own_numbers(z_channels):
    encoder, decoder = tiny_family_weights(z_channels)
    model = load_tiny_autoencoder(encoder, decoder)
    assert model.config == TinyAutoencoderConfig(z_channels, channels=8, global_norm=False)
    z = jax.eval_shape(model.encode, np.zeros((1, 16, 24, 3), np.float32))
    assert z.shape == (1, 2, 3, z_channels)
    assert jax.eval_shape(model.decode, z).shape == (1, 16, 24, 3)
    # The torch layout [out, in, kh, kw] of one array of each kind has arrived where it belongs.
    for kernel, name in (
        (model.encoder.downsample[2].kernel, "10.weight"),
        (model.encoder.down[2][1].convs[2].kernel, "12.conv.4.weight"),
    ):
        np.testing.assert_array_equal(kernel[...].transpose(3, 2, 0, 1), encoder[name])
    np.testing.assert_array_equal(
        model.decoder.up[1][2].convs[0].bias[...], decoder["10.conv.0.bias"]
    )


def test_an_encoder_and_a_decoder_of_different_latents_are_refused():
    encoder, decoder = tiny_family_weights(4)[0], tiny_family_weights(16)[1]
    with pytest.raises(
        UserError, match=r"encoder\.14\.weight has shape \(4, 8, 3, 3\), expected \(16, 8, 3, 3\)"
    ):
        load_tiny_autoencoder(encoder, decoder)


@pytest.fixture(scope="module")
def taef2(shared_golden_dir):
    weights = shared_golden_dir.parent / "weights" / "taef2"
    if not weights.is_dir():
        pytest.skip(f"no TAEF2 weights at {weights}")
    return load_tiny_autoencoder(
        *(read_weights(weights / f"taef2_{part}.pth") for part in ("encoder", "decoder"))
    )


def test_taef2_equals_the_reference(shared_golden_dir, taef2):
    golden, _ = read_golden(shared_golden_dir / "taef2.safetensors")
    latents = run(taef2, "encode", nhwc(golden["input.x"]) * 2 - 1)
    np.testing.assert_allclose(latents, nhwc(golden["latents"]), atol=1e-3, rtol=0)
    image = (run(taef2, "decode", nhwc(golden["latents"])) + 1) / 2
    np.testing.assert_allclose(np.clip(image, 0, 1), nhwc(golden["decoded"]), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_taef2_gives_photographs_back_at_29_5_db(shared_golden_dir, taef2):
    paths = sorted((shared_golden_dir.parent / "data" / "imagenet-folder").glob("train/*/*.JPEG"))
    if not paths:
        pytest.skip("no photographs beside the golden files")
    assert len(paths) == 50
    images = np.stack([adm(np.asarray(Image.open(path).convert("RGB")), 256) for path in paths])
    psnrs = []
    for batch in np.split(images, 10):
        x = batch.astype(np.float32) / 127.5 - 1
        decoded = np.clip(run(taef2, "decode", run(taef2, "encode", x)), -1, 1)
        error = np.mean(((decoded - x) / 2) ** 2, axis=(1, 2, 3))
        psnrs.extend(-10 * np.log10(error))
    print(f"mean PSNR {np.mean(psnrs):.3f} dB")
    assert np.mean(psnrs) >= 29.5
