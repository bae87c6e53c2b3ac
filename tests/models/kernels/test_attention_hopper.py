"""Hopper's attention kernels by Pallas's interpreter of GPUs' kernels, which newer versions of jax
have.
"""

import contextlib
import inspect
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.kernels.test_attention import errors, random_qkv, xla
from uvit_jax.models.kernels import backends
from uvit_jax.models.kernels.attention import hopper_attention, resolve, why_not_hopper
from uvit_jax.models.kernels.hopper_tiling import Part, Tiling, Tuning, parts_of

WHY = "this version of jax has no Mosaic GPU that the kernels are written for"
needs_mosaic = pytest.mark.skipif(backends.mosaic_gpu is None, reason=WHY)
TWO, THREE = (Tuning(*[Tiling(2, stages)] * 2) for stages in (2, 3))


@pytest.fixture
def interpreter(monkeypatch):
    """The interpreter, taught matrix products whose left factor is in registers."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks as callbacks
    from jax.experimental.pallas import mosaic_gpu

    source = inspect.getsource(callbacks.wgmma)
    key = "  a_allocation_key = HostAllocationKey.from_array(a_allocation_key_as_array)\n"
    start = source.index("  a, _, _ = shared_memory.get_buffer_content(")
    end = source.index("  b, _, _ = shared_memory.get_buffer_content(")
    fetched = source[start:end]
    assert key in source
    either = "".join(
        f"  {line}\n"
        for line in ("if a_allocation_key is not None:", *fetched.splitlines())
        if line
    )
    source = source.replace(fetched, "  a = np.asarray(a_allocation_key_as_array)\n" + either)
    source = source.replace(
        key, f"  a_allocation_key = None\n  if a_allocation_key_as_array.ndim == 1:\n  {key}"
    )
    names = dict(callbacks.__dict__)
    exec(compile(source, callbacks.__file__, "exec"), names)
    monkeypatch.setattr(callbacks, "wgmma", names["wgmma"])
    with contextlib.ExitStack() as stack:
        params = mosaic_gpu.InterpretGPUParams(uninitialized_memory="zero")
        stack.enter_context(mosaic_gpu.force_gpu_interpret_mode(params))
        yield


def kernel(tuning):
    return lambda qkv: hopper_attention(qkv, tuning, True)


@needs_mosaic
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("tokens", "head_dim", "tuning"),
    [
        (70, 72, TWO),
        (130, 64, THREE),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (258, 72, THREE),
                (257, 64, TWO),
                (16, 24, THREE),
                (288, 64, THREE),
                (128, 40, TWO),
            )
        ),
    ],
)
def test_kernels_are_as_close_as_xla_in_bfloat16(tokens, head_dim, tuning):
    qkv, d_out = random_qkv(tokens, head_dim, jnp.bfloat16, batch=1, heads=2)
    for found, twin in zip(
        errors(kernel(tuning), qkv, d_out), errors(xla, qkv, d_out), strict=True
    ):
        assert found < 1.5 * twin


@needs_mosaic
@pytest.mark.usefixtures("interpreter")
def test_large_logits_neither_overflow_nor_lose_their_tail():
    qkv, d_out = random_qkv(70, 72, jnp.bfloat16, batch=1, heads=1)
    qkv = (qkv.astype(jnp.float32) * jnp.asarray([12.0, 12.0, 1.0])[:, None, None]).astype(
        jnp.bfloat16
    )
    found = errors(kernel(TWO), qkv, d_out)
    assert np.isfinite(found).all()
    assert found[0] < 0.02


@needs_mosaic
@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("tuning", [TWO, THREE])
def test_lowers_for_a_gpu_without_one(head_dim, tuning):
    qkv, d_out = random_qkv(258, head_dim, jnp.bfloat16)

    def gradient(qkv, d_out):
        return jax.vjp(lambda x: hopper_attention(x, tuning, False), qkv)[1](d_out)[0]

    text = jax.jit(gradient).trace(qkv, d_out).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu") >= 2
    assert "stablehlo.transpose" not in text
    assert not re.search("stablehlo.concatenate.*bf16", text)


@needs_mosaic
def test_layers_share_their_kernels():
    qkv, d_out = random_qkv(130, 64, jnp.bfloat16)

    def layers(qkv):
        out = [hopper_attention(qkv + i, TWO, False) for i in range(3)]
        return out[0] + out[1] + out[2]

    def gradient(qkv, d_out):
        return jax.vjp(layers, qkv)[1](d_out)[0]

    text = jax.jit(gradient).trace(qkv, d_out).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @mosaic_gpu") == 2


@pytest.mark.parametrize(
    ("head_dim", "expected"),
    [
        (64, [(0, 64)]),
        (72, [(0, 64), (64, 16)]),
        (96, [(0, 64), (64, 32)]),
        (40, [(0, 64)]),
        (128, [(0, 64), (64, 64)]),
    ],
)
def test_parts_hold_every_channel_in_rows_that_can_be_swizzled(head_dim, expected):
    assert parts_of(head_dim) == tuple(Part(*part) for part in expected)


@pytest.mark.parametrize(
    ("shape", "dtype", "platform", "why"),
    [
        ((2, 258, 3, 4, 72), "bfloat16", "tpu", "platform gpu, not tpu"),
        ((2, 258, 3, 4, 72), "float32", "gpu", "bfloat16 and float16, not float32"),
        ((2, 258, 3, 4, 20), "bfloat16", "gpu", "multiple of 8 up to 128, not 20"),
        ((2, 4096, 3, 4, 64), "bfloat16", "gpu", "up to 288 tokens, not 4096"),
        (
            (2, 230, 3, 4, 64),
            "bfloat16",
            "gpu",
            "whole blocks of 64 tokens and up to 32 more, not 230",
        ),
    ],
)
def test_says_why_it_does_not_fit(monkeypatch, shape, dtype, platform, why):
    monkeypatch.setattr(backends, "mosaic_gpu", object())
    monkeypatch.setattr(backends, "on_hopper", lambda: True)
    assert why_not_hopper((2, 258, 3, 4, 72), "bfloat16", "gpu") is None
    assert why in why_not_hopper(shape, dtype, platform)


def test_needs_a_hopper_gpu_and_the_backend(monkeypatch):
    monkeypatch.setattr(backends, "mosaic_gpu", object())
    monkeypatch.setattr(backends, "on_hopper", lambda: False)
    assert "compute capability 9" in why_not_hopper((2, 258, 3, 4, 72), "bfloat16", "gpu")
    monkeypatch.setattr(backends, "mosaic_gpu", None)
    assert "version of jax" in why_not_hopper((2, 258, 3, 4, 72), "bfloat16", "gpu")


def test_is_taken_where_it_fits_and_says_why_where_not(monkeypatch, caplog):
    monkeypatch.setattr(backends, "mosaic_gpu", object())
    monkeypatch.setattr(backends, "on_hopper", lambda: True)
    monkeypatch.setattr(backends, "triton", None)
    with caplog.at_level("WARNING"):
        assert resolve("auto", (66, 258, 3, 4, 72), "bfloat16", "gpu") == "hopper"
        assert resolve("auto", (65, 258, 3, 4, 72), "bfloat16", "gpu") == "cudnn"
        assert resolve("hopper", (65, 258, 3, 4, 72), "bfloat16", "gpu") == "hopper"
        assert resolve("auto", (66, 334, 3, 4, 64), "bfloat16", "gpu") == "cudnn"
        assert not caplog.records
        assert resolve("hopper", (2, 258, 3, 4, 20), "bfloat16", "gpu") == "xla"
    assert "hopper falls back to xla: the Hopper kernel takes a head_dim" in caplog.text


@needs_mosaic
def test_ptxas_is_asked_for_its_version_once(monkeypatch):
    from jax.experimental.mosaic.gpu import fragmented_array

    asked = []
    extension = types.SimpleNamespace(_get_ptxas_isa_version=lambda: asked.append(1) or 90)
    monkeypatch.setattr(
        fragmented_array, "mgpu_lib", types.SimpleNamespace(_mosaic_gpu_ext=extension)
    )
    backends.keep_version_of_ptxas()
    assert [extension._get_ptxas_isa_version() for _ in range(3)] == [90, 90, 90]
    assert len(asked) == 1


@needs_mosaic
@pytest.mark.parametrize(
    "library", [None, types.SimpleNamespace(_mosaic_gpu_ext=types.SimpleNamespace())]
)
def test_a_jax_that_asks_for_no_version_is_left_alone(monkeypatch, library):
    from jax.experimental.mosaic.gpu import fragmented_array

    monkeypatch.setattr(fragmented_array, "mgpu_lib", library)
    backends.keep_version_of_ptxas()
    assert library is None or not vars(library._mosaic_gpu_ext)


def test_a_jax_whose_modules_have_moved_still_imports(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.mosaic.gpu", None)
    monkeypatch.setitem(sys.modules, "jax.experimental.mosaic.gpu.fragmented_array", None)
    backends.keep_version_of_ptxas()
