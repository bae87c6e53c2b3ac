import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from tests.interop.pth_files import write_weights
from tests.reference_weights import draw, golden_config, nhwc, read_golden, uvit_weights
from tests.test_configs import experiment
from uvit_jax.errors import UserError
from uvit_jax.interop import official
from uvit_jax.models.uvit import UViTConfig
from uvit_jax.training.network import abstract_network

SMALL = (
    "uvit_uncond_pixel",
    "uvit_class_latent",
    "uvit_class_mlp_time_qkv_bias",
    "uvit_no_skip",
    "uvit_text_latent",
)
# The published models; their configs of ours.
FULL_SIZE = {
    "cifar10_uvit_small": "cifar10",
    "celeba64_uvit_small": "celeba64",
    "imagenet64_uvit_mid": "imagenet64:mid",
    "imagenet64_uvit_large": "imagenet64:large",
    "imagenet256_uvit_large": "imagenet256:large",
    "imagenet256_uvit_huge": "imagenet256:huge",
    "imagenet512_uvit_large": "imagenet512:large",
    "imagenet512_uvit_huge": "imagenet512:huge",
    "mscoco_uvit_small": "mscoco256:small",
    "mscoco_uvit_small_deep": "mscoco256:deep",
}


def conditions(golden, prefix="input"):
    label = golden.get(f"{prefix}.y")
    return {
        "label": None if label is None else label.astype(np.int32),
        "context": golden.get(f"{prefix}.context"),
    }


# Scanned blocks have the numbers of unrolled ones: tests/models/test_uvit.py holds them to that.
@pytest.mark.parametrize(
    "scan_blocks",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["unrolled", "scanned"],
)
@pytest.mark.parametrize("name", SMALL)
def test_network_and_gradients_equal_the_official_ones(golden_dir, name, scan_blocks):
    golden, metadata = read_golden(golden_dir / f"{name}.safetensors")
    config = golden_config(metadata, scan_blocks=scan_blocks)
    weights = uvit_weights(config, int(metadata["seed"]))
    graphdef, params = nnx.split(official.load(weights, config))
    x, t, target = nhwc(golden["input.x"]), golden["input.t"], nhwc(golden["input.target"])

    def loss_and_output(params):
        output = nnx.merge(graphdef, params)(x, t, **conditions(golden))
        return jnp.mean((output - target) ** 2), output

    (loss, output), grads = jax.jit(jax.value_and_grad(loss_and_output, has_aux=True))(params)
    np.testing.assert_allclose(np.asarray(output), nhwc(golden["output"]), atol=2e-5, rtol=0)
    np.testing.assert_allclose(loss, golden["loss"][0], rtol=1e-5)

    grads = official.dump(nnx.merge(graphdef, grads))
    assert len(grads) == sum(key.startswith("grad_norm.") for key in golden)
    for key, grad in grads.items():
        norm = golden[f"grad_norm.{key}"][0]
        assert np.linalg.norm(grad) == pytest.approx(norm, rel=1e-4), key
        # The projection of a gradient can be small by chance: what it is held to is the gradient's
        # own size.
        dot = np.sum(grad * draw(f"proj.{key}", grad.shape))
        assert dot == pytest.approx(
            golden[f"grad_dot.{key}"][0], rel=1e-4, abs=1e-4 * float(norm)
        ), key


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_network_of_a_pth_file_equals_the_official_one(shared_golden_dir, tmp_path, name):
    golden, metadata = read_golden(shared_golden_dir / "uvit_full_size.safetensors")
    expected = json.loads(metadata[name])
    config = official.config_from_official(expected, scan_blocks=True)
    ours = experiment(FULL_SIZE[name]).model
    assert config == dataclasses.replace(ours, dtype="float32", remat="none", scan_blocks=True)
    weights = uvit_weights(config)
    assert sum(array.size for array in weights.values()) == expected["num_params"]
    path = write_weights(tmp_path / f"{name}.pth", weights)
    graphdef, params = nnx.split(official.load(official.read_weights(path), config))
    path.unlink()
    context = golden.get(f"{name}.context")
    label = np.array([7], np.int32) if config.num_classes else None
    run = jax.jit(
        lambda params, x: nnx.merge(graphdef, params)(x, jnp.array([412.0]), label, context)
    )
    output = run(params, nhwc(golden[f"{name}.x"]))
    np.testing.assert_allclose(
        np.asarray(output), nhwc(golden[f"{name}.output"]), atol=2e-4, rtol=0
    )
    dumped = official.dump(nnx.merge(graphdef, params))
    assert all(np.array_equal(dumped[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", SMALL)
def test_dump_gives_back_what_load_took_bit_for_bit(golden_dir, name):
    _, metadata = read_golden(golden_dir / f"{name}.safetensors")
    config = golden_config(metadata)
    weights = uvit_weights(config, seed=3)
    dumped = official.dump(official.load(weights, config))
    assert list(dumped) == list(weights)
    for key, array in weights.items():
        assert dumped[key].dtype == np.float32
        assert dumped[key].tobytes() == np.ascontiguousarray(array).tobytes(), key


def test_dump_of_a_fresh_model_loads_into_the_same_function():
    config = UViTConfig(
        image_size=8, in_channels=2, embed_dim=16, depth=3, num_heads=2, num_classes=4
    )
    graphdef, network, init_params = abstract_network(config)
    params = jax.jit(init_params)(jax.random.key(1))
    again = official.params(official.dump(nnx.merge(graphdef, params)), config)
    x, t, label = (
        np.ones((2, 8, 8, 2), np.float32),
        np.array([3.0, 800.0], np.float32),
        np.array([0, 3]),
    )
    run = jax.jit(network)
    assert np.array_equal(run(params, x, t, label), run(again, x, t, label))


@pytest.fixture(scope="module")
def tiny():
    config = UViTConfig(
        image_size=4, in_channels=1, embed_dim=8, depth=3, num_heads=2, num_classes=4
    )
    return config, uvit_weights(config)


def test_missing_and_unexpected_arrays_are_named(tiny):
    config, weights = tiny
    weights = dict(weights)
    weights["in_blocks.1.norm1.weight"] = weights.pop("mid_block.norm1.weight")
    with pytest.raises(
        UserError,
        match=r"missing.*mid_block\.norm1\.weight.*unexpected.*in_blocks\.1\.norm1\.weight",
    ):
        official.load(weights, config)


def test_an_array_of_another_shape_is_named_with_both_shapes(tiny):
    config, weights = tiny
    with pytest.raises(UserError, match=r"label_emb\.weight has shape \(7, 8\), expected \(4, 8\)"):
        official.load(weights | {"label_emb.weight": np.zeros((7, 8), np.float32)}, config)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_another_precision_become_float32(tiny, dtype):
    config, weights = tiny
    params = official.params({name: array.astype(dtype) for name, array in weights.items()}, config)
    expected = official.params(
        {name: array.astype(dtype).astype(np.float32) for name, array in weights.items()}, config
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: np.where(a > 0, a, np.inf),
            r"norm\.bias has \d values NaN or infinite of 8, expected none",
        ),
        (lambda a: a.astype(np.float64) * 1e300, r"norm\.bias has 8 values NaN or infinite"),
        (
            lambda a: a.astype(np.int8),
            r"norm\.bias is of dtype int8, expected floating point \(are the weights quant",
        ),
    ],
)
def test_weights_that_are_not_numbers_are_refused(tiny, change, message):
    config, weights = tiny
    with pytest.raises(UserError, match=message):
        official.params(weights | {"norm.bias": change(weights["norm.bias"])}, config)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_size": 8},
        {"embed_dim": 16},
        {"depth": 5},
        {"num_classes": 0},
        {"num_classes": 7},
        {"in_channels": 3, "patch_size": 4},
        {"time_mlp": True, "qkv_bias": True},
        {"skip": "none", "conv": "none"},
        {"mlp_ratio": 2.0},
        {"num_classes": 0, "context_dim": 6, "context_length": 3, "image_size": 8},
    ],
    ids=str,
)
def test_the_fields_in_which_weights_are_of_another_architecture_are_named(tiny, fields):
    config, _ = tiny
    others = dataclasses.replace(config, **fields)
    config = (
        dataclasses.replace(config, num_classes=0, context_dim=5, context_length=3)
        if "context_dim" in fields
        else config
    )
    with pytest.raises(UserError) as refused:
        official.params(uvit_weights(others), config)
    told = str(refused.value).partition("; the weights are of ")[2].split("), ")
    expected = {
        name: f"{name} = {value} (the model's {name} is {getattr(config, name)}"
        for name, value in dataclasses.asdict(others).items()
        if value != getattr(config, name)
    }
    assert {field.rstrip(")") for field in told} == set(expected.values())


def test_an_ablation_without_official_layout_is_refused(tiny):
    _, weights = tiny
    adaln = UViTConfig(
        image_size=4, in_channels=1, embed_dim=8, depth=3, num_heads=2, num_classes=4, time="adaln"
    )
    with pytest.raises(UserError, match="time is 'adaln'"):
        official.load(weights, adaln)


def test_official_config_reads_depth_as_one_less_and_minus_one_as_no_labels():
    config = official.config_from_official(
        {
            "img_size": 32,
            "patch_size": 2,
            "in_chans": 3,
            "embed_dim": 512,
            "depth": 12,
            "num_heads": 8,
            "num_classes": -1,
        }
    )
    assert (config.depth, config.num_classes, config.conv, config.skip) == (
        13,
        0,
        "after",
        "concat",
    )


@pytest.mark.parametrize(
    ("official_config", "message"),
    [
        ({"depth": 13}, "official depth is 13, expected an even number"),
        ({"emb_dim": 3}, "official config has emb_dim"),
    ],
)
def test_official_config_refuses_what_it_cannot_mean(official_config, message):
    with pytest.raises(UserError, match=message):
        official.config_from_official(official_config)
