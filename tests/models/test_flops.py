import jax
import numpy as np
import pytest

from tests.models.test_uvit import equations
from tests.models.tiny_uvit import ABLATIONS, TINY, Tiny, tiny_model
from uvit_jax.models.flops import forward_flops
from uvit_jax.models.uvit_config import UViTConfig

SMALL = {"embed_dim": 512, "depth": 13, "num_heads": 8}
MID = {"embed_dim": 768, "depth": 17, "num_heads": 12}
LARGE = {"embed_dim": 1024, "depth": 21, "num_heads": 16}
HUGE = {"embed_dim": 1152, "depth": 29, "num_heads": 16, "conv": "none"}
LATENT_256 = {"image_size": 32, "patch_size": 2, "in_channels": 4}
LATENT_512 = {"image_size": 64, "patch_size": 4, "in_channels": 4}
PIXEL_64 = {"image_size": 64, "patch_size": 4, "in_channels": 3}
TEXT = {"context_dim": 768, "context_length": 77}


@pytest.mark.parametrize(
    ("fields", "giga"),
    [
        (SMALL | {"image_size": 32, "patch_size": 2, "in_channels": 3}, 73),
        (SMALL | PIXEL_64, 73),
        (MID | PIXEL_64 | {"num_classes": 1000}, 211),
        (LARGE | PIXEL_64 | {"num_classes": 1000}, 459),
        (LARGE | LATENT_256 | {"num_classes": 1001}, 459),
        (HUGE | LATENT_256 | {"num_classes": 1001}, 799),
        (LARGE | LATENT_512 | {"num_classes": 1001}, 459),
        (HUGE | LATENT_512 | {"num_classes": 1001}, 799),
        (SMALL | LATENT_256 | TEXT, 97),
        (SMALL | LATENT_256 | TEXT | {"depth": 17}, 127),
    ],
    ids=[
        "cifar10",
        "celeba64",
        "imagenet64_mid",
        "imagenet64_large",
        "imagenet256_large",
        "imagenet256_huge",
        "imagenet512_large",
        "imagenet512_huge",
        "mscoco256",
        "mscoco256_deep",
    ],
)
def test_the_papers_models_cost_what_the_reference_says(fields, giga):
    assert 3 * forward_flops(UViTConfig(**fields)) / 1e9 == pytest.approx(giga, abs=0.5)


def traced_flops(tiny: Tiny) -> int:
    """Twice the multiply-adds of every product and convolution in the traced network, for one
    image.
    """
    total = 0
    for eqn in equations(jax.make_jaxpr(tiny.output)(tiny.shapes).jaxpr):
        if eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            total += (
                2
                * eqn.outvars[0].aval.size
                * np.prod([eqn.invars[0].aval.shape[i] for i in contracted])
            )
        elif eqn.primitive.name == "conv_general_dilated":
            total += 2 * eqn.outvars[0].aval.size * np.prod(eqn.invars[1].aval.shape[:-1])
    return int(total) // len(tiny.x)


MORE = {
    "conv_stack_not_square": {"patch_embed": "conv_stack", "image_size": (16, 24), "patch_size": 8},
    "conv_stack_of_two": {
        "patch_embed": "conv_stack",
        "num_classes": 4,
        "conv": "none",
        "depth": 1,
    },
    "conv_stack_text": {
        "patch_embed": "conv_stack",
        "patch_size": 4,
        "conv": "before",
        **ABLATIONS["text_not_square"],
    }
    | {"image_size": (8, 12)},
    "adaln_time_mlp": {"time": "adaln", "time_mlp": True, "skip": "none"},
    "whole_image_patch": {"patch_size": 8, "mlp_ratio": 2, "qkv_bias": True},
}


@pytest.mark.parametrize("name", [*ABLATIONS, *MORE])
def test_the_count_is_that_of_every_product_the_network_makes(name):
    tiny = tiny_model(**(ABLATIONS | MORE)[name])
    assert forward_flops(tiny.config) == traced_flops(tiny)


def test_scanning_and_precision_change_no_count():
    counts = {
        forward_flops(UViTConfig(**TINY, **how))
        for how in ({}, {"scan_blocks": True, "dtype": "bfloat16"})
    }
    assert len(counts) == 1


def test_xla_counts_about_as_much():
    tiny = tiny_model(embed_dim=128, depth=3)
    compiled = jax.jit(tiny.output).lower(tiny.shapes).compile()
    assert len(tiny.x) * forward_flops(tiny.config) == pytest.approx(
        compiled.cost_analysis()["flops"], rel=0.15
    )
