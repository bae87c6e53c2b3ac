import dataclasses
import json

import jax
import numpy as np
import pytest
import tokenizers
from huggingface_hub import constants
from safetensors.numpy import save_file

from tests.reference_weights import draw, formula_weight, read_golden
from uvit_jax.errors import UserError
from uvit_jax.interop.clip_text import open_text_encoder, random_text_encoder
from uvit_jax.interop.tokenizer import Tokenizer
from uvit_jax.models.frozen.clip_text import CLIPTextConfig

HUB = "model.safetensors"
OPEN_CLIP = "open_clip_model.safetensors"
OPEN_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "quick_gelu": True,
        "text_cfg": {
            "context_length": 12,
            "vocab_size": 60,
            "width": 32,
            "heads": 4,
            "layers": 2,
            "mlp_ratio": 3,
        },
    },
    "preprocess_cfg": {},
}


@pytest.fixture(scope="module")
def golden(golden_dir):
    return read_golden(golden_dir / "clip_text_tiny.safetensors")[0]


@pytest.fixture(scope="module")
def config(golden_dir):
    """The hub's config.json of the small tower."""
    return json.loads(read_golden(golden_dir / "clip_text_tiny.safetensors")[1]["config"])


@pytest.fixture(scope="module")
def weights(golden_dir):
    """A small tower with its projection under the hub's names."""
    keys = json.loads((golden_dir / "clip_text_tiny_keys.json").read_text())
    return {key: formula_weight(key, tuple(shape)) for key, shape in keys.items()}


@pytest.fixture(scope="module")
def open_clip(weights):
    """The same tower under OpenCLIP's names, with an image tower beside it."""
    text = {key.removeprefix("text_model."): array for key, array in weights.items()}
    state = {
        "logit_scale": np.ones((), np.float32),
        "visual.conv1.weight": np.ones((2, 3, 4, 4), np.float32),
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
        "text_projection": np.ascontiguousarray(text["text_projection.weight"].T),
    }
    for i in range(2):
        theirs, hub = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for leaf in ("weight", "bias"):
            qkv = [text[f"{hub}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            state[f"{theirs}.attn.in_proj_{leaf}"] = np.concatenate(qkv)
            state[f"{theirs}.attn.out_proj.{leaf}"] = text[f"{hub}.self_attn.out_proj.{leaf}"]
            state[f"{theirs}.ln_1.{leaf}"] = text[f"{hub}.layer_norm1.{leaf}"]
            state[f"{theirs}.ln_2.{leaf}"] = text[f"{hub}.layer_norm2.{leaf}"]
            state[f"{theirs}.mlp.c_fc.{leaf}"] = text[f"{hub}.mlp.fc1.{leaf}"]
            state[f"{theirs}.mlp.c_proj.{leaf}"] = text[f"{hub}.mlp.fc2.{leaf}"]
    return state


def write(folder, weights, config, name=HUB):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / name)
    (folder / ("open_clip_config.json" if name == OPEN_CLIP else "config.json")).write_text(
        json.dumps(config)
    )
    return str(folder)


def without(weights, name):
    return {key: array for key, array in weights.items() if key != name}


def assert_same_tower(first, second):
    assert first.sha256 == second.sha256
    assert first.config == second.config
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_states_and_embeddings_equal_the_reference(activation, golden, weights, config, tmp_path):
    encoder = open_text_encoder(write(tmp_path, weights, {**config, "hidden_act": activation}))
    states = jax.jit(encoder.encode)(encoder.params, golden["token_ids"])
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, golden[f"{activation}.last_hidden_state"], atol=1e-5, rtol=0)
    embeddings = jax.jit(encoder.embed)(encoder.params, golden["token_ids"])
    np.testing.assert_allclose(embeddings, golden[f"{activation}.text_embeds"], atol=1e-5, rtol=0)


def test_every_publication_of_a_tower_is_the_same_tower(weights, open_clip, config, tmp_path):
    expected = open_text_encoder(
        write(tmp_path / "plain", weights, {**config, "hidden_act": "quick_gelu"})
    )
    whole = {
        **weights,
        "logit_scale": np.ones((), np.float32),
        "vision_model.embeddings.class_embedding": np.ones(32, np.float32),
        "visual_projection.weight": np.ones((16, 32), np.float32),
        "text_model.embeddings.position_ids": np.arange(12)[None],
    }
    clip = {
        "model_type": "clip",
        "text_config": {**config, "hidden_size": 512},
        "text_config_dict": {"hidden_size": 32},
    }
    write(tmp_path / "whole", whole, clip)
    write(tmp_path / "pipeline" / "text_encoder", weights, config)
    write(
        tmp_path / "bare",
        {key.removeprefix("text_model."): array for key, array in weights.items()},
        config,
    )
    write(tmp_path / "open_clip", open_clip, OPEN_CLIP_CONFIG, OPEN_CLIP)
    stage = {f"cond_stage_model.transformer.{key}": array for key, array in weights.items()}
    write(
        tmp_path / "stage",
        stage | {"first_stage_model.quant_conv.bias": np.ones(8, np.float32)},
        config,
        "sd.bin",
    )
    stage = {f"cond_stage_model.model.{key}": array for key, array in open_clip.items()}
    write(tmp_path / "open_stage", stage, OPEN_CLIP_CONFIG, OPEN_CLIP)
    write(tmp_path / "variant", weights, config, "model.fp16.safetensors")
    write(tmp_path / "variants" / "text_encoder", weights, config, "model.fp16.safetensors")
    for name in (
        "stage/sd.bin",
        "open_stage",
        "variant",
        "variants",
        "whole",
        "pipeline",
        "pipeline/text_encoder",
        "bare",
        f"plain/{HUB}",
        "open_clip",
        f"open_clip/{OPEN_CLIP}",
    ):
        opened = open_text_encoder(str(tmp_path / name))
        assert opened.name == str(tmp_path / name)
        assert_same_tower(opened, expected)


def test_two_towers_in_one_file_and_two_variants_in_a_folder_are_named(weights, config, tmp_path):
    two = {
        f"{place}.{key}": array
        for place in ("embedders.0", "embedders.1")
        for key, array in weights.items()
    }
    with pytest.raises(
        UserError, match=r"holds 2 networks of this kind, at 'embedders\.0' and 'embedders\.1'"
    ):
        open_text_encoder(write(tmp_path / "two", two, config))
    for variant in ("fp16", "bf16"):
        write(tmp_path / "variants", weights, config, f"model.{variant}.safetensors")
    with pytest.raises(
        UserError, match=r"holds 2 variants of one tower \(model\.bf16\.safetensors, model\.fp16"
    ):
        open_text_encoder(f"{tmp_path}/variants")


def test_a_pointer_in_place_of_a_tower_or_its_config_is_named(weights, config, tmp_path):
    folder = write(tmp_path, weights, config)
    for name in (HUB, "config.json"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
        with pytest.raises(UserError, match=rf"^{folder}/{name} is a git-LFS pointer to 9 bytes"):
            open_text_encoder(folder)


def test_half_precision_weights_become_float32_parameters(weights, config, tmp_path):
    half = {key: array.astype(np.float16) for key, array in weights.items()}
    encoder = open_text_encoder(write(tmp_path, half, config), dtype="bfloat16")
    assert encoder.config.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(encoder.params)} == {np.dtype(np.float32)}


def test_the_hash_is_of_what_states_depend_on(weights, config, tmp_path):
    def hash_of(weights, **fields):
        return open_text_encoder(write(tmp_path, weights, {**config, **fields})).sha256

    expected = hash_of(weights)
    assert hash_of(without(weights, "text_projection.weight")) == expected
    assert hash_of(weights, hidden_act="gelu") != expected
    assert hash_of(weights, num_attention_heads=2) != expected
    name = "text_model.encoder.layers.1.mlp.fc2.bias"
    assert hash_of({**weights, name: weights[name] + np.float32(1e-3)}) != expected


def test_a_tower_of_a_diffusion_model_has_no_embeddings(weights, config, tmp_path):
    encoder = open_text_encoder(write(tmp_path, without(weights, "text_projection.weight"), config))
    assert encoder.config.projection == 0
    with pytest.raises(UserError, match="the text tower has no projection"):
        encoder.embed(encoder.params, np.zeros((1, 12), np.int32))


def test_a_name_on_the_hub_is_found_in_its_cache(weights, config, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model, commit = tmp_path / "models--org--pipeline", "a" * 40
    write(model / "snapshots" / commit / "text_encoder", weights, config)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    expected = open_text_encoder(str(model / "snapshots" / commit / "text_encoder"))
    for name in ("org/pipeline", "org/pipeline:text_encoder", f"org/pipeline/text_encoder/{HUB}"):
        assert_same_tower(open_text_encoder(name), expected)


def test_a_tower_that_is_nowhere_is_named_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"{tmp_path}/openai/clip.* openai/clip .*{tmp_path}/cache.*127.0.0.1:9"
    ):
        open_text_encoder("openai/clip")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "t5"}, 'model_type is "t5", expected clip or clip_text_model$'),
        ({"hidden_act": "relu"}, "activation is 'relu', expected one of"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06, expected 1e-5$"),
        (
            {"num_hidden_layers": "2"},
            'num_hidden_layers is "2", expected a whole number, at least 1$',
        ),
        (
            {"num_hidden_layers": 3},
            r"arrays 16 missing \(first: encoder.layers.2.self_attn.q_proj.weight\)",
        ),
        ({"num_hidden_layers": 1}, "arrays 16 unexpected"),
        (
            {"intermediate_size": 128},
            r"fc1.weight has shape \(96, 32\), expected \(128, 32\) \(by config.json beside",
        ),
    ],
)
def test_a_config_of_another_network_is_refused_by_name(fields, message, weights, config, tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path}/.*{message}"):
        open_text_encoder(write(tmp_path, weights, {**config, **fields}))


def test_an_open_clip_tower_of_another_kind_is_refused(open_clip, tmp_path):
    saved = {
        "model_cfg": {
            "text_cfg": {**OPEN_CLIP_CONFIG["model_cfg"]["text_cfg"], "no_causal_mask": True}
        }
    }
    with pytest.raises(UserError, match="text_cfg has no_causal_mask, expected only vocab_size,"):
        open_text_encoder(write(tmp_path, open_clip, saved, OPEN_CLIP))


def test_open_clip_without_quick_gelu_has_the_exact_one(open_clip, tmp_path):
    saved = {"model_cfg": without(OPEN_CLIP_CONFIG["model_cfg"], "quick_gelu")}
    assert (
        open_text_encoder(write(tmp_path, open_clip, saved, OPEN_CLIP)).config.activation == "gelu"
    )


def test_weights_without_a_config_are_refused(weights, config, tmp_path):
    write(tmp_path, weights, config)
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        UserError, match=rf"{HUB} has no config.json or open_clip_config.json beside it"
    ):
        open_text_encoder(str(tmp_path / HUB))
    with pytest.raises(
        UserError, match=rf"{tmp_path} holds {HUB}, expected a CLIP text tower: config.json with"
    ):
        open_text_encoder(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["[]", "{", "3", '{"model_cfg": 3}', '{"model_type": "clip", "text_config": 3}']
)
def test_a_config_that_is_none_is_refused(content, weights, config, tmp_path):
    write(tmp_path, weights, config)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"^{tmp_path}/config.json"):
        open_text_encoder(str(tmp_path))


def test_a_random_tower_has_a_state_per_text_and_is_named_random():
    config = CLIPTextConfig(vocab_size=300, width=64, layers=4, heads=4)
    encoder = random_text_encoder(7, config)
    assert (encoder.name, encoder.config) == ("random:7", config)
    ids = np.full((2, 77), 299, np.int32)
    ids[:, 1:6] = np.random.default_rng(0).integers(0, 298, (2, 5))
    states = np.asarray(jax.jit(encoder.encode)(encoder.params, ids))
    assert np.abs(states).max() < 10
    difference = np.sqrt(np.mean((states[0] - states[1]) ** 2, axis=-1))
    assert difference[0] == 0
    assert difference[1:6].min() > 0.7  # of states with a standard deviation of 1
    assert difference[6] > 0.3  # the end's, which says what was before it
    assert (
        random_text_encoder(7, config).sha256
        == encoder.sha256
        != random_text_encoder(8, config).sha256
    )


@pytest.mark.parametrize("name", ["random:", "random:-1", "random:x"])
def test_a_random_tower_needs_a_seed(name):
    with pytest.raises(
        UserError, match=rf"the text encoder is '{name}', expected random: and a seed"
    ):
        open_text_encoder(name)


def test_a_tokenizer_of_more_ids_or_longer_texts_is_refused():
    def tokenizer(vocab_size, context_length):
        ids = {
            "start": 0,
            "end": 1,
            "pad": 1,
            "vocab_size": vocab_size,
            "context_length": context_length,
        }
        return Tokenizer(name="bpe", backend=tokenizers.Tokenizer(tokenizers.models.BPE()), **ids)

    encoder = random_text_encoder(
        0, CLIPTextConfig(vocab_size=300, context_length=16, width=8, layers=1, heads=1)
    )
    encoder.check_tokenizer(tokenizer(300, 16))
    with pytest.raises(
        UserError,
        match=r"bpe has 301 tokens, expected at most the 300 of the text encoder random:0$",
    ):
        encoder.check_tokenizer(tokenizer(301, 16))
    with pytest.raises(UserError, match="bpe has 17 tokens to a text, expected at most the 16"):
        encoder.check_tokenizer(tokenizer(300, 17))


@pytest.mark.slow
def test_a_random_tower_opens_by_name():
    encoder = open_text_encoder("random:3", dtype="bfloat16")
    assert encoder.config == CLIPTextConfig(dtype="bfloat16")
    assert encoder.sha256 == random_text_encoder(3).sha256


@pytest.mark.slow
def test_vit_l_14_equals_the_reference(shared_golden_dir, tmp_path):
    golden, metadata = read_golden(shared_golden_dir / "clip_text.safetensors")
    keys = json.loads((shared_golden_dir / "clip_text_keys.json").read_text())
    weights = {key: formula_weight(key, tuple(shape)) for key, shape in keys.items()}
    config = {**json.loads(metadata["config"]), "model_type": "clip_text_model"}
    encoder = open_text_encoder(write(tmp_path, weights, config))
    assert encoder.config == CLIPTextConfig()
    states = jax.jit(encoder.encode)(encoder.params, golden["token_ids"].astype(np.int32))
    np.testing.assert_allclose(
        np.asarray(states)[:3, ::8], golden["last_hidden_state"], atol=2e-5, rtol=0
    )
    half = dataclasses.replace(
        encoder, graphdef=open_text_encoder(str(tmp_path), dtype="bfloat16").graphdef
    )
    error = (
        np.asarray(jax.jit(half.encode)(half.params, golden["token_ids"].astype(np.int32))) - states
    )
    assert np.sqrt(np.mean(error**2) / np.mean(states**2)) < 0.01


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPTextModel", "CLIPTextModelWithProjection"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_parity_with_transformers(kind, activation, config, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    text = {**config, "hidden_act": activation}
    if kind == "CLIPModel":
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        full = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        model = transformers.CLIPModel(full)
    else:
        model = getattr(transformers, kind)(transformers.CLIPTextConfig(**text))
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if tensor.ndim}
    weights = {key: torch.from_numpy(formula_weight(key, shape)) for key, shape in shapes.items()}
    model.load_state_dict(weights, strict=False)
    model.eval().save_pretrained(tmp_path / "safe")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((tmp_path / "safe" / "config.json").read_bytes())
    ids = np.clip(np.abs(20 * draw("ids", (4, 12))), 0, 58).astype(np.int32)
    ids[:, 8:] = 59
    with torch.no_grad():
        tower = model.text_model if kind == "CLIPModel" else model
        expected = tower(input_ids=torch.from_numpy(ids).long()).last_hidden_state.numpy()
    encoder = open_text_encoder(str(tmp_path / "safe"))
    np.testing.assert_allclose(
        jax.jit(encoder.encode)(encoder.params, ids), expected, atol=1e-5, rtol=0
    )
    assert_same_tower(open_text_encoder(str(tmp_path)), encoder)
    if kind == "CLIPModel":
        with torch.no_grad():
            features = model.get_text_features(input_ids=torch.from_numpy(ids).long())
        features = getattr(features, "pooler_output", features).numpy()
        np.testing.assert_allclose(
            jax.jit(encoder.embed)(encoder.params, ids), features, atol=1e-5, rtol=0
        )
