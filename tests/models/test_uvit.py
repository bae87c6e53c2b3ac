import functools
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from tests.reference_weights import draw
from uvit_jax.errors import UserError
from uvit_jax.models.uvit import UViT, UViTConfig
from uvit_jax.parallel.sharding import path_name
from uvit_jax.training.network import abstract_network

TINY = {"image_size": 8, "in_channels": 2, "embed_dim": 16, "depth": 5, "num_heads": 2}
LABELS, TEXT = {"num_classes": 4}, {"context_dim": 6, "context_length": 3}
# Images of 15 and 13 patches, so that every sequence is 17 tokens long: operations run one by one
# and each compiles once for all ablations.
LABEL_TOKEN, TEXT_TOKENS = LABELS | {"image_size": (6, 10)}, TEXT | {"image_size": (2, 26)}
ABLATIONS = {
    "unconditional": {},
    "label_not_square": LABEL_TOKEN,
    "text_not_square": TEXT_TOKENS,
    "skip_add_then_linear": {"skip": "add_then_linear"},
    "skip_linear_then_add": {"skip": "linear_then_add"},
    "skip_add": {"skip": "add"},
    "skip_none": {"skip": "none"},
    "adaln": LABELS | {"time": "adaln"},
    "conv_before_not_square": LABEL_TOKEN | {"conv": "before"},
    "conv_none": {"conv": "none"},
    "conv_stack": {"patch_embed": "conv_stack", "image_size": 16, "patch_size": 4},
    "conv_stack_of_one": {"patch_embed": "conv_stack", "image_size": 4, "patch_size": 1},
    "sincos_2d": LABEL_TOKEN | {"pos_embed": "sincos_2d"},
    "time_mlp": {"time_mlp": True},
    "qkv_bias": {"qkv_bias": True},
    "depth_1": {"depth": 1},
    "mlp_ratio": {"mlp_ratio": 1.5, "depth": 1},
}
# Compiling these small things takes longer than running them.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Tiny:
    """A small U-ViT with drawn parameters (none zero: a missing bias would show) and one batch for
    it.
    """

    def __init__(self, **fields):
        self.config = UViTConfig(**TINY | fields)
        self.graphdef, state = nnx.split(
            nnx.eval_shape(lambda: UViT(self.config, rngs=nnx.Rngs(0)))
        )
        self.shapes = nnx.to_pure_dict(state)
        self.x, self.t = (
            draw("x", (2, *self.config.sample_shape)),
            np.array([3.0, 412.0], np.float32),
        )
        self.condition = {}
        if self.config.num_classes:
            self.condition = {"label": np.array([0, 3], np.int32)}
        elif self.config.context_dim:
            self.condition = {
                "context": draw("context", (2, self.config.context_length, self.config.context_dim))
            }

    @functools.cached_property
    def params(self):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.asarray(0.25 * draw(path_name(path), leaf.shape)), self.shapes
        )

    @property
    def paths(self) -> dict[str, tuple[int, ...]]:
        return {
            path_name(path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.shapes)
        }

    def output(self, params=None, t=None) -> jax.Array:
        params, t = self.params if params is None else params, self.t if t is None else t
        return nnx.merge(self.graphdef, params)(self.x, t, **self.condition)

    def loss(self, params) -> jax.Array:
        return jnp.mean((self.output(params) - draw("target", self.x.shape)) ** 2)


@functools.cache
def _tiny(fields: tuple) -> Tiny:
    return Tiny(**dict(fields))


def tiny_model(**fields) -> Tiny:
    """The model of these fields; made once."""
    return _tiny(tuple(fields.items()))


# --- U-ViT once more, in NumPy and float64, from the paper's formulas.


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def conv(p, x, stride=1):
    h, w = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [
        x[:, i : i + h : stride, j : j + w : stride] @ p["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    ]
    return sum(taps) + p["bias"]


def layer_norm(p, x, time):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    if "modulation" not in p:
        return x * p["norm"]["scale"] + p["norm"]["bias"]
    y = dense(p["modulation"], time)[:, None]
    d = x.shape[-1]
    y_s, y_b = 1 + y[..., :d], y[..., d:]
    return y_s * x + y_b


def attention(p, x):
    q, k, v = np.moveaxis(
        np.einsum("btd,dche->btche", x, p["qkv"]["kernel"]) + p["qkv"].get("bias", 0), 2, 0
    )
    scores = np.exp(np.einsum("bqhe,bkhe->bhqk", q, k) * q.shape[-1] ** -0.5)
    out = np.einsum("bhqk,bkhe->bqhe", scores / scores.sum(-1, keepdims=True), v)
    return np.einsum("bqhe,hed->bqd", out, p["proj"]["kernel"]) + p["proj"]["bias"]


def block(p, x, time, kind=None, skip=None):
    match kind:
        case "concat":
            x = (
                np.concatenate([x, skip], -1) @ p["skip"]["kernel"].reshape(-1, x.shape[-1])
                + p["skip"]["bias"]
            )
        case "add_then_linear":
            x = dense(p["skip"]["linear"], x + skip)
        case "linear_then_add":
            x = x + dense(p["skip"]["linear"], skip)
        case "add":
            x = x + skip
    x = x + attention(p["attn"], layer_norm(p["norm1"], x, time))
    h = dense(p["mlp"]["fc1"], layer_norm(p["norm2"], x, time))
    return x + dense(p["mlp"]["fc2"], 0.5 * h * (1 + erf(h / np.sqrt(2))))


def sinusoid(config, t):
    frequencies = np.exp(-np.log(10000) * np.arange(config.embed_dim / 2) / (config.embed_dim / 2))
    return np.concatenate([np.cos(np.outer(t, frequencies)), np.sin(np.outer(t, frequencies))], -1)


def embed_patches(config, p, x):
    if config.patch_embed == "conv_stack":
        for stage in range(len(p["stages"])):
            x = np.maximum(
                conv(p["stages"][stage], x, stride=1 if config.patch_size == 1 else 2), 0
            )
        return dense(p["proj"], x.reshape(len(x), -1, x.shape[-1]))
    s, (rows, columns) = config.patch_size, config.grid
    patches = [
        x[:, r * s : (r + 1) * s, c * s : (c + 1) * s] for r in range(rows) for c in range(columns)
    ]
    return dense(p["proj"], np.stack([patch.reshape(len(x), -1) for patch in patches], 1))


def positions(config, p):
    if config.pos_embed == "learned":
        return p["pos_embed"]
    quarter = config.embed_dim // 4
    table = np.zeros((config.num_tokens, config.embed_dim))
    for i in range(config.grid[0] * config.grid[1]):
        for j, place in enumerate(divmod(i, config.grid[1])):
            angles = place / 10000 ** (np.arange(quarter) / quarter)
            row = table[config.num_tokens - config.grid[0] * config.grid[1] + i]
            row[2 * j * quarter : 2 * (j + 1) * quarter] = np.concatenate(
                [np.sin(angles), np.cos(angles)]
            )
    return table


def reference(tiny):
    config, p = tiny.config, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tiny.params)
    time = sinusoid(config, tiny.t)
    if config.time_mlp:
        h = dense(p["time_mlp"]["fc1"], time)
        time = dense(p["time_mlp"]["fc2"], h / (1 + np.exp(-h)))
    tokens = [embed_patches(config, p["patch_embed"], tiny.x.astype(np.float64))]
    if config.context_dim:
        tokens.insert(0, dense(p["context_embed"], tiny.condition["context"]))
    if config.time == "token":
        tokens.insert(0, time[:, None])
    if config.num_classes:
        tokens.insert(0, p["label_embed"]["embedding"][tiny.condition["label"]][:, None])
    h = np.concatenate(tokens, 1) + positions(config, p)
    skips = []
    for i in range(config.depth // 2):
        h = block(p["in_blocks"][i], h, time)
        skips.append(h)
    h = block(p["mid_block"], h, time)
    for i in range(config.depth // 2):
        h = block(p["out_blocks"][i], h, time, config.skip, skips.pop())
    s, (rows, columns) = config.patch_size, config.grid
    h = layer_norm(p["norm"], h, time)[:, -rows * columns :]
    if config.conv == "before":
        h = conv(p["conv_before"], h.reshape(len(h), rows, columns, -1)).reshape(h.shape)
    h, image = dense(p["head"], h), np.zeros(tiny.x.shape)
    for i in range(rows * columns):
        r, c = divmod(i, columns)
        image[:, r * s : (r + 1) * s, c * s : (c + 1) * s] = h[:, i].reshape(
            -1, s, s, config.in_channels
        )
    return conv(p["conv_after"], image) if config.conv == "after" else image


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


# --- How it is computed changes nothing.

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
    loss, grads = loss_and_gradients(
        tiny_model(**GRADIENTS[skip], scan_blocks=scan_blocks, remat=remat)
    )
    expected_loss, expected = gradients[skip]
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for (path, grad), other in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(grads), strict=True
    ):
        scale = np.abs(grad).max()
        assert scale > 0, f"{path_name(path)} has no effect"
        np.testing.assert_allclose(other, grad, rtol=0, atol=2e-5 * scale, err_msg=path_name(path))


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


# --- Initial weights.


@pytest.fixture(scope="module")
def fresh():
    """Fresh parameters by path, wide enough to see a distribution in each."""
    config = UViTConfig(
        image_size=4,
        in_channels=24,
        embed_dim=32,
        depth=1,
        num_heads=2,
        num_classes=50,
        time_mlp=True,
    )
    params = jax.jit(abstract_network(config)[2], compiler_options=FAST_COMPILE)(
        jax.random.key(0, impl="rbg")
    )
    return {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_linear_layers_and_positions_start_normal_with_deviation_002_and_labels_with_1(fresh):
    normal = [
        path
        for path in fresh
        if path.endswith("kernel") and not re.search("patch_embed|conv", path)
    ]
    assert len(normal) == 7
    for path in [*normal, "label_embed/embedding", "pos_embed"]:
        std, values = 1.0 if path == "label_embed/embedding" else 0.02, fresh[path]
        tolerance = 4 / np.sqrt(values.size)  # four standard errors of a mean
        assert values.mean() / std == pytest.approx(0, abs=tolerance), path
        assert values.std() / std == pytest.approx(1, abs=tolerance), path


def test_convolutions_start_uniform_within_the_inverse_root_of_their_inputs(fresh):
    for path, fan_in in (("patch_embed/proj", 2 * 2 * 24), ("conv_after", 9 * 24)):
        bound = 1 / np.sqrt(fan_in)
        for array in (fresh[f"{path}/kernel"], fresh[f"{path}/bias"]):
            assert 0.8 * bound < np.abs(array).max() <= bound, path
        assert fresh[f"{path}/kernel"].std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_biases_start_at_0_and_norms_as_the_identity(fresh):
    biases = [
        path for path in fresh if path.endswith("bias") and not re.search("patch_embed|conv", path)
    ]
    assert len(biases) == 9
    assert not any(np.any(fresh[path]) for path in biases)
    scales = [path for path in fresh if path.endswith("scale")]
    assert len(scales) == 3
    assert all(np.all(fresh[path] == 1) for path in scales)


def test_the_same_key_gives_the_same_parameters_scanned_or_not():
    programs = set()
    for scan, remat in ((False, "none"), (True, "full")):
        config = UViTConfig(**TINY | {"depth": 3}, scan_blocks=scan, remat=remat)
        programs.add(str(jax.make_jaxpr(abstract_network(config)[2])(jax.random.key(0))))
    assert len(programs) == 1


# --- Bad input.


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


def test_kernels_asked_for_where_they_do_not_fit_fall_back_with_one_warning(caplog):
    x, t = np.zeros((1, 4, 4, 3), np.float32), np.zeros(1, np.float32)
    common = {"image_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    plain = UViT(UViTConfig(**common), rngs=nnx.Rngs(0))(x, t)
    with caplog.at_level("WARNING", "uvit_jax"):
        for _ in range(2):
            model = UViT(
                UViTConfig(**common, kernels="triton", attention="cudnn"), rngs=nnx.Rngs(0)
            )
            np.testing.assert_array_equal(model(x, t), plain)
    assert sorted(record.getMessage() for record in caplog.records) == [
        "attention = cudnn falls back to xla: cuDNN's kernel takes bfloat16 and float16 on "
        "platform gpu, not float32 on cpu",
        "kernels = triton falls back to xla: the kernels take bfloat16 on platform gpu, not "
        "float32 on cpu",
    ]
