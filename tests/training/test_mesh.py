"""Every split of the mesh trains as one device does, keeps to its share of the state, and says no
more than it must.
"""

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from tests.jobs.runs import ROOT, environment
from tests.training.mesh_runs import SMALL

LABELS: dict[str, Any] = {"num_classes": 11}
TEXT: dict[str, Any] = {"context_dim": 12, "context_length": 5}
TOKENS = 23  # of SMALL with labels; no parameter has a dimension of this size
MESHES = [
    (8, 1, 1),
    (1, 8, 1),
    (1, 1, 8),
    (4, 2, 1),
    (2, 4, 1),
    (4, 1, 2),
    (2, 1, 4),
    (1, 4, 2),
    (1, 2, 4),
    (2, 2, 2),
]


def program(task: str, cases: list[dict[str, Any]], timeout: float = 600) -> list[Any]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.training.mesh_runs", task, json.dumps(cases)],
        cwd=ROOT,
        env=environment(devices=8),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # The partitioner's words where it goes from one sharding to another through the whole array.
    assert "full rematerialization" not in result.stderr, result.stderr[-3000:]
    return json.loads(result.stdout)


def case(mesh: tuple[int, ...], **model: Any) -> dict[str, Any]:
    return {"mesh": mesh, "model": model}


def check_equal(found: dict[str, Any], what: Any) -> None:
    for name in ("losses", "params", "ema"):
        assert found[name] < 1e-5, (what, found)


@pytest.mark.slow
@pytest.mark.parametrize("scan_blocks", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("condition", [LABELS, TEXT], ids=["labels", "text"])
def test_every_mesh_trains_as_one_device_does(condition, scan_blocks):
    cases = [case(mesh, **condition, scan_blocks=scan_blocks) for mesh in MESHES]
    results = program("train", cases, timeout=1800)
    for given, found in zip(cases, results, strict=True):
        check_equal(found, given)
    # Small models have relatively more of what stays whole, biases and norms: a little above the
    # eighth.
    assert results[MESHES.index((1, 8, 1))]["share"] < 1.2 / 8


@pytest.mark.slow
def test_tpus_attention_trains_on_a_mesh_as_plain_attention_does_on_one_device():
    cases = [
        case((2, 2, 2), **LABELS, attention="mosaic", remat="matmuls", scan_blocks=True),
        case((2, 1, 4), **TEXT, attention="mosaic"),
    ]
    for given, found in zip(cases, program("train", cases, timeout=1800), strict=True):
        check_equal(found, given)


@pytest.mark.slow
def test_rematerialisation_and_every_ablation_train_on_a_mesh_as_on_one_device():
    cases = [
        *(
            case((2, 2, 2), **LABELS, remat=remat, scan_blocks=scan)
            for remat in ("matmuls", "full")
            for scan in (0, 1)
        ),
        case((1, 4, 2), **LABELS, time="adaln", time_mlp=True, qkv_bias=False, scan_blocks=True),
        case((2, 2, 2), **LABELS, skip="add_then_linear", conv="before", pos_embed="sincos_2d"),
        case((2, 2, 2), skip="linear_then_add", patch_embed="conv_stack", conv="none"),
    ]
    for one in cases:
        one["model"]["scan_blocks"] = bool(one["model"].get("scan_blocks"))
    for given, found in zip(cases, program("train", cases, timeout=1800), strict=True):
        check_equal(found, given)


def plan(*mesh: int, **model: Any) -> list[dict[str, Any]]:
    """The collectives of a step on this mesh."""
    return program("collectives", [case(mesh, **LABELS, **model)])[0]


def moves_activations(collective: dict[str, Any], width: int = 64) -> bool:
    # The position embedding has as many rows as there are tokens, for all examples together.
    return any(
        TOKENS in shape and math.prod(shape) > TOKENS * width for shape in collective["shapes"]
    )


@pytest.mark.slow
def test_data_parallelism_reduces_each_gradient_once_and_says_nothing_else():
    collectives = plan(8, 1, 1, depth=9, scan_blocks=True)
    assert {found["kind"] for found in collectives} == {"all-reduce"}
    sizes = [
        math.prod(shape)
        for found in collectives
        for shape in found["shapes"]
        for _ in range(found["count"])
    ]
    d, depth, hidden, patch = 64, 9, 256, 12
    block = 3 * d * d + d * d + d + 2 * d * hidden + hidden + d + 4 * d
    outer = (11 + 23) * d + patch * d + d + 2 * d + d * patch + patch + 9 * 3 * 3 + 3
    gradients = depth * block + depth // 2 * (2 * d * d + d) + outer
    # Beside the gradients only the loss is reduced.
    assert gradients <= sum(sizes) <= gradients + 8


@pytest.fixture(scope="module")
def fsdp_plan():
    return plan(1, 8, 1, depth=9, scan_blocks=True)


def test_fsdp_gathers_each_layer_alone_once_a_pass_and_never_a_whole_stack(fsdp_plan):
    gathers = [found for found in fsdp_plan if found["kind"] == "all-gather"]
    layer = {
        "qkv": 64 * 3 * 64,
        "proj": 64 * 64,
        "fc1": 64 * 256,
        "fc2": 256 * 64,
        "skip": 2 * 64 * 64,
    }
    for found in gathers:
        assert max(math.prod(shape) for shape in found["shapes"]) <= max(layer.values()), found
    looped = [found for found in gathers if found["inside_loop"]]
    assert all(found["count"] == 4 for found in looped)  # of 9 blocks 4 come in and 4 go out
    # Four kernels in each of the 8 blocks and 4 skips, in the forward pass and again in the
    # backward pass.
    assert sum(found["count"] for found in looped) == 2 * (4 * 8 + 4)


def test_fsdp_moves_parameters_and_not_activations(fsdp_plan):
    for found in fsdp_plan:
        assert found["kind"] in ("all-gather", "all-reduce", "reduce-scatter"), found
        assert not moves_activations(found), found


@pytest.mark.slow
def test_tensor_parallelism_reduces_twice_a_block_and_pass():
    collectives = plan(1, 1, 8)
    reduced = [
        found for found in collectives if found["kind"] == "all-reduce" and moves_activations(found)
    ]
    assert sum(found["count"] for found in reduced) == 2 * 2 * 5
    # A skip's product is split by its output, which is all-gathered; in the backward pass its
    # weights are.
    gathered = [found for found in collectives if found["kind"] == "all-gather"]
    assert sum(found["count"] for found in gathered if moves_activations(found)) == 2
    assert not [found for found in collectives if found["kind"] not in ("all-reduce", "all-gather")]


@pytest.mark.slow
def test_a_mesh_of_all_axes_does_what_each_axis_does_and_nothing_more():
    collectives = plan(2, 2, 2, scan_blocks=True, remat="matmuls")
    for found in collectives:
        assert found["group_size"] in (2, 4), found  # never all eight at once
        if moves_activations(found):
            assert found["group_size"] == 2, found  # activations over tensor alone
        if found["kind"] not in ("all-reduce", "all-gather", "reduce-scatter"):
            # The head's two kernels are split by another dimension than their gradients arrive in:
            # 12 x 64 numbers.
            assert sum(math.prod(shape) for shape in found["shapes"]) <= 12 * 64, found
    assert {found["group_size"] for found in collectives} == {2, 4}


@pytest.mark.tpu
def test_the_tpu_compiler_scatters_gradients_where_fsdp_splits_them():
    pytest.importorskip("libtpu")
    collectives = program(
        "tpu", [case((1, 4, 1), **LABELS, embed_dim=256, depth=9, scan_blocks=True)]
    )[0]
    looped = [found for found in collectives if found["inside_loop"]]
    assert {"all-gather", "reduce-scatter"} <= {found["kind"] for found in looped}
    largest = 256 * 1024
    for found in looped:
        assert max(math.prod(shape) for shape in found["shapes"]) <= 2 * largest, found
    assert not any(moves_activations(found, width=256) for found in collectives)


def test_the_small_model_has_the_tokens_these_tests_count():
    (h, w), patch = SMALL["image_size"], 2
    assert h // patch * (w // patch) + 2 == TOKENS
