"""Configs and calls that are refused."""

import jaxtyping
import numpy as np
import pytest
from flax import nnx

from tests.models.tiny_uvit import LABELS, TEXT, TINY, tiny_model
from uvit_jax.errors import UserError
from uvit_jax.models.uvit import UViTConfig


@pytest.fixture
def unchecked(monkeypatch):
    """Without the tests' own checks of types and shapes, which would come first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 12}, "depth is 12, expected an odd number"),
        ({"depth": 0}, "depth is 0, expected at least 1"),
        ({"patch_size": 0}, "patch_size is 0, expected at least 1"),
        ({"in_channels": 0}, "in_channels is 0, expected at least 1"),
        ({"embed_dim": -8}, "embed_dim is -8, expected at least 1"),
        ({"num_heads": 0}, "num_heads is 0, expected at least 1"),
        ({"num_classes": -1}, r"num_classes is -1, expected 0 \(none\) or more"),
        ({"context_length": -2}, r"context_length is -2, expected 0 \(none\) or more"),
        ({"image_size": 9}, "image_size is 9x9, expected positive multiples of patch_size = 2"),
        ({"image_size": (8, 7)}, "image_size is 8x7, expected positive multiples"),
        ({"image_size": 0}, "image_size is 0x0, expected positive multiples"),
        (
            {"image_size": (8,)},
            r"image_size is \(8,\), expected a whole number, or two: height and width",
        ),
        ({"image_size": (8, 8, 8)}, r"image_size is \(8, 8, 8\), expected a whole number, or two"),
        ({"image_size": 8.0}, "image_size is 8.0, expected a whole number, or two"),
        ({"depth": 3.0}, "depth is 3.0, expected a whole number"),
        ({"num_classes": 4.0}, "num_classes is 4.0, expected a whole number"),
        ({"num_heads": 3}, "embed_dim is 16, expected a multiple of num_heads = 3"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0, expected a positive number"),
        (LABELS | TEXT, "num_classes and context_dim are both set"),
        ({"context_dim": 6}, "context_dim is 6 and context_length 0, expected both or neither"),
        ({"context_length": 6}, "context_dim is 0 and context_length 6, expected both or neither"),
        (
            {"patch_embed": "conv_stack", "patch_size": 3, "image_size": 9},
            "patch_size is 3, expected a power of two",
        ),
        ({"pos_embed": "sincos_2d", "embed_dim": 18}, "embed_dim is 18, expected a multiple of 4"),
        (
            {"skip": "conact"},
            r"skip is 'conact', expected one of 'concat', .* \(did you mean 'concat'\?\)",
        ),
        ({"time": "tokens"}, r"time is 'tokens'.*did you mean 'token'"),
        ({"conv": "befor"}, r"conv is 'befor'.*did you mean 'before'"),
        ({"patch_embed": "conv"}, "patch_embed is 'conv', expected one of 'linear', 'conv_stack'"),
        ({"pos_embed": "sincos"}, r"pos_embed is 'sincos'.*did you mean 'sincos_2d'"),
        ({"dtype": "bf16"}, "dtype is 'bf16', expected one of 'float32', 'bfloat16'"),
        ({"remat": "all"}, "remat is 'all', expected one of 'none', 'matmuls', 'full'"),
        ({"attention": "flash"}, "attention is 'flash', expected one of 'auto', 'xla', 'cudnn'"),
    ],
    ids=lambda value: (
        "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
@pytest.mark.usefixtures("unchecked")
def test_a_config_that_cannot_be_is_refused_with_field_value_and_expectation(fields, message):
    with pytest.raises(UserError, match=f"^{message}"):
        UViTConfig(**TINY | fields)


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        (
            {},
            {"x": np.zeros((2, 8, 6, 2))},
            r"x has shape \(2, 8, 6, 2\), expected \(batch, 8, 8, 2\)",
        ),
        (
            {},
            {"x": np.zeros((2, 8, 8, 3))},
            r"x has shape \(2, 8, 8, 3\), expected \(batch, 8, 8, 2\)",
        ),
        ({}, {"label": np.zeros(2, np.int32)}, "label was given, but this model is unconditional"),
        (
            {},
            {"context": np.zeros((2, 3, 6))},
            "context was given, but this model is unconditional",
        ),
        (
            LABELS,
            {},
            r"label was missing, but this model is conditioned on a label \(num_classes = 4\)",
        ),
        (
            LABELS,
            {"label": np.array([0, 1]), "context": np.zeros((2, 3, 6))},
            "context was given, but .* on a label",
        ),
        (LABELS, {"label": np.array([0, 4])}, "label 4 is outside the table, expected 0 to 3"),
        (LABELS, {"label": np.array([-1, 0])}, "label -1 is outside the table, expected 0 to 3"),
        (
            TEXT,
            {},
            r"context was missing, but this model is conditioned on a text context \(context_dim "
            r"= 6\)",
        ),
        (
            TEXT,
            {"label": np.zeros(2, np.int32), "context": np.zeros((2, 3, 6))},
            "label was given, but .* text",
        ),
        (
            TEXT,
            {"context": np.zeros((2, 3, 5))},
            r"context has shape \(2, 3, 5\), expected \(2, 3, 6\)",
        ),
        (
            TEXT,
            {"context": np.zeros((2, 4, 6))},
            r"context has shape \(2, 4, 6\), expected \(2, 3, 6\)",
        ),
        (
            TEXT,
            {"context": np.zeros((1, 3, 6))},
            r"context has shape \(1, 3, 6\), expected \(2, 3, 6\)",
        ),
        ({}, {"t": np.float32(3)}, r"t has shape \(\), expected \(2,\), a time for each row of x"),
        ({}, {"t": 3.0}, r"t has shape \(\), expected \(2,\)"),
        ({"time": "adaln"}, {"t": np.zeros(1)}, r"t has shape \(1,\), expected \(2,\)"),
        (
            LABELS,
            {"label": np.zeros(3, np.int32)},
            r"label has shape \(3,\), expected \(2,\), an id for each row",
        ),
        (
            LABELS,
            {"label": np.zeros((2, 1), np.int32)},
            r"label has shape \(2, 1\), expected \(2,\)",
        ),
        (LABELS, {"label": np.zeros(2, np.float32)}, "label is of float32, expected integers"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_call_that_does_not_fit_the_model_is_refused(fields, change, message):
    tiny = tiny_model(**fields)
    model = nnx.merge(tiny.graphdef, tiny.shapes)
    with pytest.raises(UserError, match=f"^{message}"):
        model(**{"x": np.zeros((2, 8, 8, 2)), "t": np.zeros(2)} | change)
