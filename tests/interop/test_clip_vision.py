import dataclasses
import json

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image
from scipy.special import erf

from tests.interop.test_clip_text import without, write
from tests.reference_weights import formula_weight
from uvit_jax.errors import UserError
from uvit_jax.interop.clip_text import open_text_encoder
from uvit_jax.interop.clip_vision import open_image_encoder
from uvit_jax.interop.clip_vision_layouts import read_vision_config, vision_layout
from uvit_jax.models.frozen.clip_vision import MEAN, STD, CLIPVisionConfig, preprocess

HUB, OPEN_CLIP = "model.safetensors", "open_clip_model.safetensors"
SMALL = CLIPVisionConfig(
    image_size=24, patch_size=8, width=32, layers=2, heads=4, mlp_ratio=3, projection=16
)
CONFIG = {
    "model_type": "clip_vision_model",
    "image_size": 24,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_act": "quick_gelu",
}
OPEN_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 24,
            "patch_size": 8,
            "width": 32,
            "head_width": 8,
            "layers": 2,
            "mlp_ratio": 3,
            "patch_dropout": 0.5,
        },
        "text_cfg": {
            "context_length": 12,
            "vocab_size": 60,
            "width": 32,
            "heads": 4,
            "layers": 2,
            "mlp_ratio": 3,
        },
    },
    "preprocess_cfg": {"mean": list(MEAN), "std": list(STD)},
}
PREPROCESSOR = {
    "crop_size": 24,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.5, 0.25, 0.75],
    "image_std": [0.5, 1, 0.25],
    "resample": 3,
    "size": 24,
}


@pytest.fixture(scope="module")
def weights():
    """A small tower under the hub's names."""
    keys = {name: entry.shape for name, entry in vision_layout(SMALL).items()}
    names = {
        key: key if key == "visual_projection.weight" else f"vision_model.{key}" for key in keys
    }
    return {name: formula_weight(name, keys[key]) for key, name in names.items()}


@pytest.fixture(scope="module")
def open_clip(weights):
    """The same tower under OpenCLIP's names, with a text tower beside it."""
    hub = {key.removeprefix("vision_model."): array for key, array in weights.items()}
    state = {
        "logit_scale": np.ones((), np.float32),
        "positional_embedding": np.ones((12, 32), np.float32),
        "text_projection": np.ones((32, 16), np.float32),
        "transformer.resblocks.0.attn.in_proj_bias": np.ones(96, np.float32),
        "visual.class_embedding": hub["embeddings.class_embedding"],
        "visual.conv1.weight": hub["embeddings.patch_embedding.weight"],
        "visual.positional_embedding": hub["embeddings.position_embedding.weight"],
        "visual.proj": np.ascontiguousarray(hub["visual_projection.weight"].T),
    }
    for leaf in ("weight", "bias"):
        state[f"visual.ln_pre.{leaf}"] = hub[f"pre_layrnorm.{leaf}"]
        state[f"visual.ln_post.{leaf}"] = hub[f"post_layernorm.{leaf}"]
        for i in range(2):
            theirs, layer = f"visual.transformer.resblocks.{i}", f"encoder.layers.{i}"
            qkv = [hub[f"{layer}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            state[f"{theirs}.attn.in_proj_{leaf}"] = np.concatenate(qkv)
            state[f"{theirs}.attn.out_proj.{leaf}"] = hub[f"{layer}.self_attn.out_proj.{leaf}"]
            state[f"{theirs}.ln_1.{leaf}"] = hub[f"{layer}.layer_norm1.{leaf}"]
            state[f"{theirs}.ln_2.{leaf}"] = hub[f"{layer}.layer_norm2.{leaf}"]
            state[f"{theirs}.mlp.c_fc.{leaf}"] = hub[f"{layer}.mlp.fc1.{leaf}"]
            state[f"{theirs}.mlp.c_proj.{leaf}"] = hub[f"{layer}.mlp.fc2.{leaf}"]
    return state


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)


def embed(encoder, images):
    return np.asarray(jax.jit(encoder.embed)(encoder.params, images))


def assert_same_tower(first, second):
    assert first.sha256 == second.sha256
    assert first.config == second.config
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def numpy_forward(weights, pixels, config, activation):
    """CLIP's image tower as in the paper's code, patch by patch and head by head, in float64."""
    w = {
        key.removeprefix("vision_model."): array.astype(np.float64)
        for key, array in weights.items()
    }
    p, heads = config["patch_size"], config["num_attention_heads"]
    k = config["hidden_size"] // heads

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def attention(x, layer):
        q, key, v = (linear(x, f"{layer}.self_attn.{part}_proj") for part in "qkv")
        outs = []
        for h in range(heads):
            one = slice(h * k, (h + 1) * k)
            scores = np.exp(q[:, one] @ key[:, one].T / np.sqrt(k))
            outs.append(scores / scores.sum(-1, keepdims=True) @ v[:, one])
        return linear(np.concatenate(outs, -1), f"{layer}.self_attn.out_proj")

    embeddings = []
    for image in pixels.astype(np.float64).transpose(0, 3, 1, 2):
        tokens = [w["embeddings.class_embedding"]]
        for i in range(0, image.shape[1], p):
            for j in range(0, image.shape[2], p):
                patch = image[:, i : i + p, j : j + p]
                tokens.append((w["embeddings.patch_embedding.weight"] * patch).sum((1, 2, 3)))
        x = norm(np.stack(tokens) + w["embeddings.position_embedding.weight"], "pre_layrnorm")
        for i in range(config["num_hidden_layers"]):
            layer = f"encoder.layers.{i}"
            x = x + attention(norm(x, f"{layer}.layer_norm1"), layer)
            hidden = linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
            cdf = (
                (1 + erf(hidden / np.sqrt(2))) / 2
                if activation == "gelu"
                else 1 / (1 + np.exp(-1.702 * hidden))
            )
            x = x + linear(hidden * cdf, f"{layer}.mlp.fc2")
        embeddings.append(w["visual_projection.weight"] @ norm(x[0], "post_layernorm"))
    return np.stack(embeddings)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_embeddings_equal_the_paper_s_formula(activation, weights, images, tmp_path):
    encoder = open_image_encoder(write(tmp_path, weights, {**CONFIG, "hidden_act": activation}))
    embeddings = embed(encoder, images)
    assert embeddings.dtype == np.float32
    expected = numpy_forward(weights, (images / 255 - MEAN) / STD, CONFIG, activation)
    np.testing.assert_allclose(embeddings, expected, atol=2e-5, rtol=1e-5)


def test_images_of_another_size_are_resized_and_cropped(weights, tmp_path):
    encoder = open_image_encoder(write(tmp_path, weights, CONFIG))
    x = np.random.default_rng(1).integers(0, 256, (1, 48, 96, 3), dtype=np.uint8)
    resized = np.asarray(Image.fromarray(x[0]).resize((48, 24), Image.Resampling.BICUBIC))[
        None, :, 12:36
    ]
    np.testing.assert_allclose(embed(encoder, x), embed(encoder, resized), atol=1e-5)


def test_every_publication_of_a_tower_is_the_same_tower(weights, open_clip, tmp_path):
    expected = open_image_encoder(write(tmp_path / "plain", weights, CONFIG))
    assert expected.config == SMALL
    whole = {
        **weights,
        "logit_scale": np.ones((), np.float32),
        "text_model.embeddings.token_embedding.weight": np.ones((60, 32), np.float32),
        "text_projection.weight": np.ones((16, 32), np.float32),
        "vision_model.embeddings.position_ids": np.arange(10)[None],
    }
    clip = {
        "model_type": "clip",
        "text_config": {"hidden_size": 7},
        "vision_config": {**CONFIG, "hidden_size": 512},
        "vision_config_dict": {"hidden_size": 32},
    }
    write(tmp_path / "whole", whole, clip)
    write(tmp_path / "open_clip", open_clip, OPEN_CLIP_CONFIG, OPEN_CLIP)
    for name in ("whole", f"plain/{HUB}", "open_clip", f"open_clip/{OPEN_CLIP}"):
        opened = open_image_encoder(str(tmp_path / name))
        assert opened.name == str(tmp_path / name)
        assert_same_tower(opened, expected)


def test_what_a_config_leaves_out_is_the_publishers_default(tmp_path):
    def read(name, saved):
        (tmp_path / name).write_text(json.dumps(saved))
        return read_vision_config(tmp_path / name, "bfloat16")

    base = CLIPVisionConfig(patch_size=32, width=768, layers=12, heads=12, dtype="bfloat16")
    clip = {"model_type": "clip", "vision_config": {"dropout": 0.0}, "vision_config_dict": None}
    assert read("config.json", clip) == base
    large = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    clip = {"model_type": "clip", "vision_config_dict": {**large, "intermediate_size": 4096}}
    assert read("config.json", clip) == CLIPVisionConfig(dtype="bfloat16")
    open_clip = {"model_cfg": {"vision_cfg": {"patch_size": 32}}}
    assert read("open_clip_config.json", open_clip) == dataclasses.replace(base, activation="gelu")


def test_half_precision_weights_become_float32_parameters(weights, tmp_path):
    half = {key: array.astype(np.float16) for key, array in weights.items()}
    encoder = open_image_encoder(write(tmp_path, half, CONFIG), dtype="bfloat16")
    assert encoder.config.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(encoder.params)} == {np.dtype(np.float32)}


def test_the_hash_is_of_what_embeddings_depend_on(weights, tmp_path):
    def hash_of(weights, **fields):
        return open_image_encoder(write(tmp_path, weights, {**CONFIG, **fields})).sha256

    expected = hash_of(weights)
    assert (
        hash_of({**weights, "logit_scale": np.ones(1, np.float32)}, attention_dropout=0.1)
        == expected
    )
    assert hash_of(weights, hidden_act="gelu") != expected
    assert hash_of(weights, num_attention_heads=2) != expected
    for name in ("vision_model.embeddings.class_embedding", "visual_projection.weight"):
        assert hash_of({**weights, name: weights[name] + np.float32(1e-3)}) != expected
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    assert hash_of(weights) != expected


def test_pixels_are_normalized_as_the_files_say(weights, open_clip, images, tmp_path):
    write(tmp_path / "hub", weights, CONFIG)
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    prepare = {
        "mean": PREPROCESSOR["image_mean"],
        "std": PREPROCESSOR["image_std"],
        "interpolation": "bicubic",
    }
    write(
        tmp_path / "open_clip",
        open_clip,
        {**OPEN_CLIP_CONFIG, "preprocess_cfg": prepare},
        OPEN_CLIP,
    )
    encoder = open_image_encoder(str(tmp_path / "hub"))
    assert_same_tower(open_image_encoder(str(tmp_path / "open_clip")), encoder)
    pixels = (images / 255 - prepare["mean"]) / prepare["std"]
    expected = numpy_forward(weights, pixels, CONFIG, "quick_gelu")
    np.testing.assert_allclose(embed(encoder, images), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resample": 2}, "resample is 2, expected 3$"),
        (
            {"size": {"shortest_edge": 32}},
            r'size is {"shortest_edge": 32}, expected 24 or {"shortest_edge": 24}$',
        ),
        ({"do_center_crop": False}, "do_center_crop is false, expected true$"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\], expected 3 numbers$"),
        ({"image_std": [1, 0, 1]}, "std is .*, expected positive numbers$"),
    ],
)
def test_images_prepared_in_another_way_are_refused(fields, message, weights, tmp_path):
    write(tmp_path, weights, CONFIG)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **fields}))
    with pytest.raises(UserError, match=rf"^{tmp_path}/preprocessor_config.json: {message}"):
        open_image_encoder(str(tmp_path))


def test_a_name_on_the_hub_is_found_in_its_cache(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    model, commit = tmp_path / "models--org--clip", "a" * 40
    snapshot = model / "snapshots" / commit
    write(snapshot, weights, CONFIG)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    # As a text encoder left it there, and whole.
    for name in ("org/clip", f"org/clip/{HUB}"):
        assert open_image_encoder(name).config == SMALL
    (snapshot / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    for name in ("org/clip", f"org/clip/{HUB}"):
        assert_same_tower(open_image_encoder(name), open_image_encoder(str(snapshot)))
    with pytest.raises(UserError, match=rf"{tmp_path}/org/other, org/other .*127.0.0.1:9"):
        open_image_encoder("org/other")


def test_a_folder_with_a_text_tower_alone_is_refused(golden_dir, tmp_path):
    keys = json.loads((golden_dir / "clip_text_tiny_keys.json").read_text())
    text = {key: formula_weight(key, tuple(shape)) for key, shape in keys.items()}
    write(tmp_path / "text", text, {"model_type": "clip_text_model"})
    with pytest.raises(
        UserError, match=r'model_type is "clip_text_model", expected clip or clip_vision_model$'
    ):
        open_image_encoder(str(tmp_path / "text"))
    write(tmp_path / "clip", text, {"model_type": "clip", "vision_config": CONFIG})
    with pytest.raises(
        UserError,
        match=rf"{HUB}: the weights hold text_.*, expected a CLIP image tower: vision_model",
    ):
        open_image_encoder(str(tmp_path / "clip"))
    write(tmp_path / "pipeline" / "text_encoder", text, {"model_type": "clip_text_model"})
    with pytest.raises(
        UserError,
        match=r"pipeline holds text_encoder, expected a CLIP image tower: config.json with",
    ):
        open_image_encoder(str(tmp_path / "pipeline"))


def test_a_folder_with_an_image_tower_alone_has_no_text_encoder(weights, tmp_path):
    with pytest.raises(
        UserError, match=r'model_type is "clip_vision_model", expected clip or clip_text_model$'
    ):
        open_text_encoder(write(tmp_path, weights, CONFIG))


def test_a_tower_without_its_projection_is_refused(weights, tmp_path):
    with pytest.raises(UserError, match=r"arrays 1 missing \(first: visual_projection.weight\)"):
        open_image_encoder(write(tmp_path, without(weights, "visual_projection.weight"), CONFIG))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "siglip"}, 'model_type is "siglip", expected clip or clip_vision_model$'),
        ({"hidden_act": "relu"}, "activation is 'relu', expected one of"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06, expected 1e-5$"),
        ({"num_channels": 4}, "num_channels is 4, expected 3$"),
        (
            {"image_size": [24, 24]},
            r"image_size is \[24, 24\], expected a whole number, at least 1$",
        ),
        (
            {"num_hidden_layers": 3},
            r"arrays 16 missing \(first: encoder.layers.2.self_attn.q_proj.weight\)",
        ),
        ({"num_hidden_layers": 1}, "arrays 16 unexpected"),
        (
            {"patch_size": 4},
            r"patch_embedding.weight has shape \(32, 3, 8, 8\), expected \(32, 3, 4, 4\) \(by "
            r"config",
        ),
        (
            {"image_size": 32},
            r"position_embedding.weight has shape \(10, 32\), expected \(17, 32\)",
        ),
    ],
)
def test_a_config_of_another_network_is_refused_by_name(fields, message, weights, tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path}/.*{message}"):
        open_image_encoder(write(tmp_path, weights, {**CONFIG, **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"timm_model_name": "convnext_base"},
            "vision_cfg has timm_model_name, expected only image_size,",
        ),
        ({"layers": [3, 4, 6, 3]}, r"layers is \[3, 4, 6, 3\], expected a whole number"),
        ({"head_width": 24}, "width is 32, expected a multiple of head_width = 24"),
    ],
)
def test_an_open_clip_tower_of_another_kind_is_refused(fields, message, open_clip, tmp_path):
    vision = {**OPEN_CLIP_CONFIG["model_cfg"]["vision_cfg"], **fields}
    saved = {"model_cfg": {**OPEN_CLIP_CONFIG["model_cfg"], "vision_cfg": vision}}
    with pytest.raises(UserError, match=message):
        open_image_encoder(write(tmp_path, open_clip, saved, OPEN_CLIP))


def test_open_clip_images_prepared_in_another_way_are_refused(open_clip, tmp_path):
    saved = {**OPEN_CLIP_CONFIG, "preprocess_cfg": {"resize_mode": "squash"}}
    with pytest.raises(
        UserError, match=r'open_clip_config.json: resize_mode is "squash", expected "shortest"$'
    ):
        open_image_encoder(write(tmp_path, open_clip, saved, OPEN_CLIP))


@pytest.mark.parametrize(
    "content", ["[]", "{", "3", '{"model_cfg": {}}', '{"model_type": "clip", "vision_config": 3}']
)
def test_a_config_that_is_none_is_refused(content, weights, tmp_path):
    write(tmp_path, weights, CONFIG)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"^{tmp_path}/config.json"):
        open_image_encoder(str(tmp_path))


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModelWithProjection"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_parity_with_transformers(kind, activation, images, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    vision = {**without(CONFIG, "model_type"), "hidden_act": activation, "projection_dim": 16}
    if kind == "CLIPModel":
        text = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        full = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        model = transformers.CLIPModel(full)
    else:
        model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision))
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if tensor.ndim}
    model.load_state_dict(
        {key: torch.from_numpy(formula_weight(key, shape)) for key, shape in shapes.items()}, False
    )
    model.eval().save_pretrained(tmp_path / "safe")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((tmp_path / "safe" / "config.json").read_bytes())
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_std=[0.5, 0.4, 0.3]
    )
    for folder in (tmp_path, tmp_path / "safe"):
        processor.save_pretrained(folder)
    encoder = open_image_encoder(str(tmp_path / "safe"))
    assert_same_tower(open_image_encoder(str(tmp_path)), encoder)
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        if kind == "CLIPModel":
            expected = model.get_image_features(pixel_values=pixels)
            expected = getattr(expected, "pooler_output", expected)
        else:
            expected = model(pixel_values=pixels).image_embeds
    np.testing.assert_allclose(embed(encoder, images), expected.numpy(), atol=2e-5, rtol=1e-5)
    assert encoder.config.std == (0.5, 0.4, 0.3)


@pytest.mark.torch
@pytest.mark.parametrize(("height", "width"), [(256, 256), (250, 333), (480, 301)])
def test_images_are_prepared_as_by_transformers(height, width):
    transformers = pytest.importorskip("transformers")
    x = np.random.default_rng(2).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    expected = transformers.CLIPImageProcessorPil()(
        [Image.fromarray(image) for image in x], return_tensors="np"
    )
    pixels = preprocess(x, CLIPVisionConfig())
    np.testing.assert_allclose(
        pixels, expected["pixel_values"].transpose(0, 2, 3, 1), atol=1e-5, rtol=0
    )
