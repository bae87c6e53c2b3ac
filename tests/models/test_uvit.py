import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.numpy_uvit import reference
from tests.models.tiny_uvit import (
    ABLATIONS,
    FAST_COMPILE,
    LABEL_TOKEN,
    LABELS,
    TEXT,
    Tiny,
    tiny_model,
)
from uvit_jax.models.init_keys import InitKeys
from uvit_jax.models.uvit import UViT, UViTConfig
from uvit_jax.parallel.sharding import path_name


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_predicts_what_its_formula_says(name):
    tiny = tiny_model(**ABLATIONS[name])
    output = tiny.output()
    assert output.dtype == jnp.float32
    assert output.shape == tiny.x.shape
    expected = reference(tiny)
    np.testing.assert_allclose(output, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("fields", "present", "absent"),
    [
        (
            {},
            {"out_blocks/1/skip/kernel": (2, 16, 16), "pos_embed": (17, 16)},
            "label|context|time_mlp|qkv/bias",
        ),
        ({"skip": "add_then_linear"}, {"out_blocks/1/skip/linear/kernel": (16, 16)}, "skip/kernel"),
        ({"skip": "linear_then_add"}, {"out_blocks/0/skip/linear/bias": (16,)}, "skip/kernel"),
        ({"skip": "add"}, {}, "skip"),
        ({"skip": "none"}, {}, "skip"),
        (LABELS, {"label_embed/embedding": (4, 16), "pos_embed": (18, 16)}, "context"),
        (TEXT, {"context_embed/kernel": (6, 16), "pos_embed": (20, 16)}, "label"),
        (
            {"time": "adaln"},
            {"norm/modulation/kernel": (16, 32), "pos_embed": (16, 16)},
            "norm/(scale|bias)",
        ),
        ({"conv": "after"}, {"conv_after/kernel": (3, 3, 2, 2)}, "conv_before"),
        ({"conv": "before"}, {"conv_before/kernel": (3, 3, 16, 16)}, "conv_after"),
        ({"conv": "none"}, {}, "conv"),
        ({"pos_embed": "sincos_2d"}, {}, "pos_embed"),
        (
            {"time_mlp": True},
            {"time_mlp/fc1/kernel": (16, 64), "time_mlp/fc2/kernel": (64, 16)},
            "modulation",
        ),
        ({"qkv_bias": True}, {"in_blocks/0/attn/qkv/bias": (3, 2, 8)}, "modulation"),
        ({"depth": 1}, {"mid_block/mlp/fc1/kernel": (16, 64)}, "in_blocks|out_blocks"),
        (
            {"patch_embed": "conv_stack", "patch_size": 4},
            {
                "patch_embed/stages/0/kernel": (3, 3, 2, 8),
                "patch_embed/stages/1/kernel": (3, 3, 8, 16),
            },
            "stages/2",
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_an_ablation_has_its_own_parameters_and_no_others(fields, present, absent):
    paths = tiny_model(**fields).paths
    assert present.items() <= paths.items()
    assert not [path for path in paths if re.search(absent, path)]


def test_without_a_time_token_the_time_still_matters_to_every_example_alone():
    tiny = tiny_model(**ABLATIONS["adaln"])
    output, later = tiny.output(), tiny.output(t=tiny.t + np.array([0, 100], np.float32))
    assert np.array_equal(output[0], later[0])
    assert np.abs(output[1] - later[1]).max() > 1e-2


# --- The plain forward pass, and how it is computed, which changes nothing.


def assert_same(found, expected, tolerance):
    """Loss and gradients within a share of each gradient's largest element."""
    np.testing.assert_allclose(found[0], expected[0], rtol=tolerance)
    for (path, grad), other in zip(
        jax.tree_util.tree_leaves_with_path(expected[1]), jax.tree.leaves(found[1]), strict=True
    ):
        scale = np.abs(grad).max()
        assert scale > 0, f"{path_name(path)} has no effect"
        np.testing.assert_allclose(
            other, grad, rtol=0, atol=tolerance * scale, err_msg=path_name(path)
        )


# One of each kind: the first test compares the values of every ablation, the slow group the
# gradients of every one.
QUICKER = ("label_not_square", "skip_linear_then_add", "adaln", "conv_stack", "qkv_bias")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICKER else pytest.param(name, marks=pytest.mark.slow) for name in ABLATIONS],
)
def test_every_ablation_has_the_loss_and_gradients_of_the_plain_forward_pass(name):
    tiny = tiny_model(**{"depth": 3} | ABLATIONS[name])  # one block of each structure
    found = jax.value_and_grad(tiny.loss)(tiny.params)
    expected = jax.value_and_grad(tiny.loss)(tiny.params, tiny.plain_output)
    assert_same(found, expected, 2e-5)


def test_in_bfloat16_the_plain_forward_pass_differs_by_rounding_alone():
    exact, half = tiny_model(depth=3), tiny_model(depth=3, dtype="bfloat16")
    expected = exact.plain_output()
    errors = [
        np.linalg.norm(output - expected) / np.linalg.norm(expected)
        for output in (half.output(), half.plain_output())
    ]
    assert 1e-4 < errors[0] < 0.02
    assert errors[0] < 1.5 * errors[1]


GRADIENTS = {"concat": LABEL_TOKEN, "add": LABELS | {"skip": "add", "time": "adaln"}}


def loss_and_gradients(tiny: Tiny):
    return jax.jit(jax.value_and_grad(tiny.loss), compiler_options=FAST_COMPILE)(tiny.params)


@pytest.fixture(scope="module")
def gradients():
    """Loss and gradients of the unrolled model that stores everything, by skip."""
    return {name: loss_and_gradients(tiny_model(**fields)) for name, fields in GRADIENTS.items()}


@pytest.mark.parametrize(
    ("skip", "scan_blocks", "remat"),
    [
        ("concat", False, "full"),
        ("concat", True, "matmuls"),
        ("add", True, "full"),
    ],
)
def test_scanning_and_recomputing_change_no_number_and_no_gradient(
    gradients, skip, scan_blocks, remat
):
    tiny = tiny_model(**GRADIENTS[skip], scan_blocks=scan_blocks, remat=remat)
    assert_same(loss_and_gradients(tiny), gradients[skip], 2e-5)


@pytest.mark.parametrize("fields", [{"skip": "none"}, {"skip": "linear_then_add"}], ids=str)
def test_scanned_ablations_give_the_numbers_of_unrolled_ones(fields):
    scanned, expected = tiny_model(**fields, scan_blocks=True), tiny_model(**fields).output()
    output = jax.jit(scanned.output, compiler_options=FAST_COMPILE)(scanned.params)
    np.testing.assert_allclose(output, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def count(fn, params, *names) -> int:
    return sum(eqn.primitive.name in names for eqn in equations(jax.make_jaxpr(fn)(params).jaxpr))


def test_rematerialised_blocks_and_scans_are_really_in_the_program():
    remats, scans = {}, {}
    for scan, remat in ((False, "none"), (False, "full"), (True, "none"), (True, "matmuls")):
        tiny = tiny_model(remat=remat, scan_blocks=scan)
        remats[scan, remat] = count(tiny.loss, tiny.shapes, "checkpoint", "remat", "remat2")
        scans[scan, remat] = count(tiny.loss, tiny.shapes, "scan")
    # A scan over the in blocks, the middle block, a scan over the out blocks.
    assert remats == {
        (False, "none"): 0,
        (False, "full"): 5,
        (True, "none"): 0,
        (True, "matmuls"): 3,
    }
    assert scans == {
        (False, "none"): 0,
        (False, "full"): 0,
        (True, "none"): 2,
        (True, "matmuls"): 2,
    }


@pytest.mark.parametrize(("remat", "structures"), [("none", 3), ("matmuls", 2)])
def test_blocks_of_one_structure_are_traced_and_differentiated_once(remat, structures):
    # Without rematerialisation: the first block, those that fork the stream, those that take a
    # skip.
    tiny = tiny_model(depth=9, remat=remat)
    calls = [
        eqn.params["jaxpr"]
        for eqn in equations(jax.make_jaxpr(jax.grad(tiny.loss))(tiny.shapes).jaxpr)
        if eqn.params.get("name") == "apply"
    ]
    assert len(calls) == 2 * 9  # forward and backward
    assert len({id(jaxpr) for jaxpr in calls}) == 2 * structures


def test_full_recomputes_every_matrix_product_and_matmuls_only_the_attention_scores():
    tiny = tiny_model(depth=3, conv="none")
    forward = count(tiny.loss, tiny.shapes, "dot_general")
    products = {
        remat: count(
            jax.grad(tiny_model(depth=3, conv="none", remat=remat).loss), tiny.shapes, "dot_general"
        )
        for remat in ("none", "matmuls", "full")
    }
    # A block has qkv, scores, values, proj, fc1 and fc2, and one of the three the two halves of its
    # skip; patches and head make two. The last product of a block, fc2, need not be made again for
    # its own gradient.
    assert forward == 3 * 6 + 2 + 2
    assert products["matmuls"] - products["none"] == 3
    assert products["full"] - products["none"] == 3 * 5 + 2


def test_bfloat16_computes_in_bfloat16_from_float32_parameters():
    exact, half = tiny_model(depth=3), tiny_model(depth=3, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.shapes)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(half.output)(half.shapes)
    work = [
        eqn
        for eqn in equations(program.jaxpr)
        if eqn.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert len(work) == 3 * 6 + 2 + 3
    assert {var.aval.dtype for eqn in work for var in eqn.invars} == {jnp.dtype("bfloat16")}
    output = jax.jit(half.output, compiler_options=FAST_COMPILE)(half.params)
    expected = exact.output()
    assert output.dtype == jnp.float32
    error = np.abs(output - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.05


def test_kernels_asked_for_where_they_do_not_fit_fall_back_with_one_warning(caplog):
    x, t = np.zeros((1, 4, 4, 3), np.float32), np.zeros(1, np.float32)
    common = {"image_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    plain = UViT(UViTConfig(**common), rngs=InitKeys(0))(x, t)
    with caplog.at_level("WARNING", "uvit_jax"):
        for _ in range(2):
            model = UViT(
                UViTConfig(**common, kernels="triton", attention="cudnn"), rngs=InitKeys(0)
            )
            np.testing.assert_array_equal(model(x, t), plain)
    assert sorted(record.getMessage() for record in caplog.records) == [
        "attention = cudnn falls back to xla: cuDNN's kernel takes bfloat16 and float16 on "
        "platform gpu, not float32 on cpu",
        "kernels = triton falls back to xla: the kernels take bfloat16 on platform gpu, not "
        "float32 on cpu",
    ]
