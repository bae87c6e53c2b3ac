import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import preflight as benchmark
from tests.jobs.runs import tiny_experiment
from uvit_jax.data.training_data import load_built_in
from uvit_jax.errors import Failed, UserError
from uvit_jax.experiment.step_program import abstract_inputs, abstract_state, batch_fields
from uvit_jax.jobs import preflight
from uvit_jax.jobs.forecast import search
from uvit_jax.jobs.forecast.program import Hardware, Refusal, read_refusal, shard_bytes
from uvit_jax.jobs.forecast.report import closing_line, table
from uvit_jax.models.flops import forward_flops
from uvit_jax.parallel.chips import TPUS, GiB
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh


def compiled_figures(report):
    """What stands in a report whatever the compiler."""
    parts = report["memory"]["parts"]
    return parts["parameters"], parts["EMA"], parts["optimizer"], parts["batch"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A preflight of the tiny digits run on this machine, its data set named but not there."""
    workdir = tmp_path_factory.mktemp("local")
    experiment = tiny_experiment(data__source="not/there", preflight__sampler=True)
    line = preflight.run(experiment, workdir)
    return experiment, line, json.loads((workdir / "preflight.json").read_text())


def test_the_local_device_is_preflighted_without_the_data(local):
    _, line, report = local
    parameters = 4 * report["model"]["parameters"]
    # AdamW keeps two moments and two counts (its own, and the learning rate's); images are bytes,
    # labels int32.
    assert compiled_figures(report) == (
        parameters,
        parameters,
        2 * parameters + 8,
        16 * 8 * 8 + 16 * 4,
    )
    assert report["memory"]["total"] == sum(report["memory"]["parts"].values())
    assert report["memory"]["fits"] is None
    assert report["roofline"] is None
    assert report["schedule"] is None
    assert report["run"] is None
    assert line.startswith("compiled for cpu (1 chip): ")
    assert " MiB a chip, of a memory that isn't known" in line
    # TPU's compiler may be installed, and compiled nothing.
    assert report["versions"]["libtpu"] is None
    assert line.endswith("preflight.json")
    table(report)


def test_the_flops_of_the_program_are_those_of_the_model(local):
    experiment, _, report = local
    flops = report["flops"]
    assert flops["model"] == 3 * 16 * forward_flops(experiment.model)
    # The patch embedding's inputs need no gradient.
    assert flops["compiled"] == pytest.approx(flops["model"], rel=0.1)
    # The compiler counts elementwise work too, which is much of so small a network.
    assert (
        flops["compiled_loops_once"]
        < flops["compiler_loops_once"]
        < 3 * flops["compiled_loops_once"]
    )


def test_the_sampler_is_counted_with_its_loop(local):
    _, _, report = local
    sampler = report["sampler"]
    # Four steps of one evaluation each, with and without the label.
    assert sampler["evaluations"] == pytest.approx(8, rel=0.1)
    assert sampler["memory"]["parts"]["conditions"] == 4 * 16


def test_the_step_is_compiled_for_the_batches_that_training_reads():
    experiment = tiny_experiment()
    mesh = make_mesh(MeshConfig())
    batch = abstract_inputs(experiment, batch_sharding(mesh)).batch
    read = load_built_in("digits").read(
        np.zeros(1, np.int64), np.zeros(1, bool), fields=batch_fields(experiment)
    )
    assert batch.keys() == read.keys()
    for name, array in read.items():
        assert batch[name].dtype == array.dtype
        assert batch[name].shape == (16, *array.shape[1:])


def test_latents_are_stored_as_moments_and_texts_as_states():
    experiment = tiny_experiment(
        autoencoder__name="some/vae",
        autoencoder__scale=0.2,
        model__in_channels=4,
        model__num_classes=0,
        model__context_dim=12,
        model__context_length=7,
    )
    step = abstract_inputs(experiment, batch_sharding(make_mesh(MeshConfig())))
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in step.batch.items()}
    assert shapes == {"x": ((16, 8, 8, 8), jnp.float16), "context": ((16, 7, 12), jnp.float16)}
    assert step.null_condition.shape == (7, 12)
    x0 = jax.eval_shape(lambda x: step.inputs(None, x, jax.random.key(0)), step.batch["x"])
    assert x0.shape == (16, *experiment.model.sample_shape)


def test_what_does_not_fit_fails_with_its_figures_on_disk(monkeypatch, tmp_path, capsys):
    refusal = Refusal(20 * GiB, int(15.75 * GiB))
    monkeypatch.setattr(preflight, "compile_program", lambda lowered: (refusal, 1.0))
    with pytest.raises(Failed) as failed:
        preflight.run(tiny_experiment(), tmp_path)
    assert (
        str(failed.value)
        == f"does not fit: 20.00 of 15.75 GiB a chip on cpu (1 chip): see {tmp_path}/preflight.json"
    )
    memory = json.loads((tmp_path / "preflight.json").read_text())["memory"]
    assert memory["total"] == sum(memory["parts"].values()) == 20 * GiB
    assert "of 15.75: does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "needed", "limit"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (21.39G) exceeds available HBM (15.75G).",
            21.39,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm. "
            "Exceeded hbm capacity by ...",
            0.50048828125,
            15.75,
        ),
    ],
)
def test_a_refusal_is_read(message, needed, limit):
    refusal = read_refusal(message)
    assert (refusal.needed / GiB, refusal.limit / GiB) == pytest.approx((needed, limit))
    assert read_refusal("RESOURCE_EXHAUSTED: something else") == Refusal(None, None)


def report_of(total=9.23, fits=True, **changes):
    """A report with the figures of a real one, of U-ViT-H/4 on v5e:16x16."""
    names = (
        "parameters",
        "optimizer",
        "EMA",
        "batch",
        "padding",
        "temporaries",
        "results",
        "program",
    )
    sizes = (1.87, 3.73, 1.87, 0.0, 0.0, 1.43, 0.0, 0.33)
    return {
        "hardware": {
            "text": "v5e:16x16 (256 chips)",
            "name": "v5e:16x16",
            "num_slices": 1,
            "chips": 256,
        },
        "versions": {"jax": "0.10.2", "libtpu": None},
        "model": {
            "parameters": 500_940_000,
            "num_tokens": 258,
            "dtype": "bfloat16",
            "remat": "matmuls",
        }
        | {"scan_blocks": False},
        "mesh": {"data": 256, "fsdp": 1, "tensor": 1},
        "batch": {"global": 1024, "per_chip": 4, "per_replica": 4},
        "compile_seconds": 116.0,
        "memory": {
            "parts": {name: int(size * GiB) for name, size in zip(names, sizes, strict=True)},
            "total": int(total * GiB),
            "capacity": int(15.75 * GiB),
            "fits": fits,
        },
        "flops": {
            "model": 3.197e12,
            "compiled": 3.215e12,
            "compiled_loops_once": 3.215e12,
            "compiler_loops_once": 3.269e12,
            "unknown_loops": [],
        },
        "collectives": [
            {
                "kind": "all-reduce",
                "network": "ici",
                "count": 10,
                "bytes": 1002000000,
                "wire_bytes": 1996200000,
            }
        ],
        "roofline": {
            "compute": 0.01632,
            "hbm": 0.01957,
            "ici": 0.00998,
            "dcn": 0.0,
            "bound": 0.01957,
            "no_overlap": 0.04587,
            "limit": "hbm",
            "highest_mfu": 0.829,
        },
        "run": {
            "steps": 500_000,
            "asked_mfu": 0.4,
            "mfu": 0.4,
            "mfu_source": "asked",
            "step_seconds": 0.0406,
            "images_per_second": 25_237.0,
            "hours": 5.64,
            "chip_hours": 1443.0,
        },
        "schedule": None,
        "sampler": None,
        "search": None,
    } | changes


def test_the_table_says_everything_once_and_in_line():
    assert table(report_of()).splitlines() == [
        "v5e:16x16 (256 chips), mesh data 256 x fsdp 1 x tensor 1, batch 1,024 (4 for each "
        "replica)",
        "500.94M parameters, 258 tokens, bfloat16, remat matmuls; compiled in 116 s by jax 0.10.2",
        "",
        "memory of a chip, GiB",
        "  parameters   1.87",
        "  optimizer    3.73",
        "  EMA          1.87",
        "  batch        0.00",
        "  padding      0.00  added by the compiler's layouts",
        "  temporaries  1.43  activations and gradients, at their peak",
        "  results      0.00  that take no argument's place",
        "  program      0.33",
        "  sum          9.23  of 15.75: fits",
        "",
        "FLOPs of a chip, T",
        "  of the model    3.20  3 x forward; what MFU counts",
        "  compiled        3.21  matrix products, 1.01 x the model's",
        "  compiler's own  3.27  all operations, loop bodies once; matrix products so counted 3.21",
        "",
        "collectives of a chip",
        "  all-reduce (ICI)  10  1,002.0 MB, 1,996.2 MB sent",
        "",
        "roofline, ms (no call is faster; a bound, no prediction)",
        "  compute     16.3  matrix products",
        "  hbm         19.6  arguments and results once",
        "  ici         9.98  between chips",
        "  bound       19.6  by hbm: MFU <= 82.9%",
        "  no overlap  45.9  one after the other",
        "",
        "run of 500,000 steps at 40.0% MFU: 40.6 ms a step, 25,237 images/s, 5.64 hours, 1,443 "
        "chip-hours",
    ]


def test_the_table_tells_what_the_chip_waits_for():
    schedule = {
        "compute": 0.0201,
        "communication": 0.00998,
        "hidden": 0.004,
        "exposed": 0.00598,
        "step": 0.02608,
    }
    lines = table(report_of(schedule=schedule | {"asynchronous": 4, "networks": {}})).splitlines()
    start = lines.index("schedule, ms (an estimate, not measured)")
    assert lines[start + 1 : start + 6] == [
        "  compute        20.1  by the compiler's own cycles for each operation",
        "  communication  9.98  at the networks' full speed",
        "  hidden            4  of that beside computation: 4 collectives are asynchronous",
        "  exposed        5.98  the rest, in which the chip waits",
        "  step           26.1  computation and what is exposed: MFU 62.2%",
    ]


def test_the_closing_line_is_the_gist():
    assert closing_line(report_of()) == (
        "fits: 9.23 of 15.75 GiB a chip on v5e:16x16 (256 chips), step >= 19.6 ms, MFU <= 83%, "
        "5.64 hours (1,443 chip-hours) at 40% MFU"
    )
    refused = report_of(total=21.39, fits=False, roofline=None)
    assert (
        closing_line(refused) == "does not fit: 21.39 of 15.75 GiB a chip on v5e:16x16 (256 chips)"
    )


def test_what_is_small_is_told_in_small_units():
    run = report_of()["run"] | {"hours": 7.23e-05, "chip_hours": 5.78e-04}
    small = report_of(total=36.7 / 1024, run=run)
    assert closing_line(small).startswith(
        "fits: 36.70 MiB of 15.75 GiB a chip on v5e:16x16 (256 chips), "
    )
    assert closing_line(small).endswith(", 0.26 seconds (2.08 chip-seconds) at 40% MFU")
    assert table(small).endswith(" images/s, 0.26 seconds, 2.08 chip-seconds")
    minutes = report_of(run=run | {"hours": 0.05, "chip_hours": 0.4})
    assert closing_line(minutes).endswith(", 3 minutes (0.4 chip-hours) at 40% MFU")
    assert closing_line(report_of(run=run | {"mfu": 0.0034})).endswith(" at 0.3% MFU")
    batch = {
        "tries": [{"per_replica": 4, "total": 36 * 2**20, "fits": True}],
        "largest_per_replica": 4,
    }
    mesh = {
        "compiled": [
            {
                "mesh": {"data": 4},
                "total": 36 * 2**20,
                "bound": 1.0,
                "no_overlap": 2.0,
                "fits": True,
            }
        ]
    }
    found = {
        "batch": batch | {"largest_global": 16},
        "mesh": mesh | {"best": {"data": 4}, "estimated": 1},
    }
    lines = table(report_of(search=found)).splitlines()
    assert "largest batch for each replica: 4 (16 in all); tried, MiB" in lines
    assert "  4  36.00  fits" in lines
    assert "best mesh for this batch: data 4; of 1 estimated, compiled, MiB" in lines


def test_the_table_says_whose_word_a_run_slower_than_asked_is():
    run = report_of()["run"] | {"asked_mfu": 0.9}
    said = {"roofline": "by the roofline's bound", "schedule": "by the schedule's step"}
    for source, words in said.items():
        line = table(report_of(run=run | {"mfu_source": source})).splitlines()[-1]
        assert f" at 40.0% MFU ({words}: 90% can't be reached): " in line
    line = table(report_of(run=run | {"asked_mfu": 0.0, "mfu_source": "roofline"})).splitlines()[-1]
    assert " at 40.0% MFU (by the roofline's bound): " in line


def test_the_benchmarks_table_has_a_line_for_each_config_and_slice():
    fits = benchmark.row("configs/imagenet512.py:huge", report_of())
    refused = benchmark.row(
        "configs/cifar10.py", report_of(total=21.39, fits=False, roofline=None, run=None)
    )
    lines = benchmark.markdown([fits, refused]).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == list(benchmark.HEADS)
    assert cells[2][:6] == ["imagenet512.py:huge", "v5e:16x16", "256", "4", "9.23", "15.75"]
    assert cells[2][6:] == ["19.6 ms", "hbm", "83%", "5.6 at 40%", "1,443", "116 s"]
    assert cells[3][4:] == ["21.39, too much", "15.75", "-", "-", "-", "-", "-", "116 s"]


def hardware(chips=256):
    return Hardware("v5e", jax.devices() * chips, TPUS["v5e"], TPUS["v5e"].hbm, 200e9)


@pytest.mark.parametrize("asked", [0.0, 0.4, 0.9])
def test_hours_are_those_of_the_share_asked_for_but_never_faster_than_the_roofline(asked):
    experiment = tiny_experiment(preflight__mfu=asked)
    costs = preflight.run_costs(experiment, hardware(), report_of())
    share = 0.4 if asked == 0.4 else 0.829
    assert costs["mfu"] == share
    seconds = 3 * 16 * forward_flops(experiment.model) / (256 * 197e12 * share)
    assert costs["hours"] == pytest.approx(experiment.train.steps * seconds / 3600)
    assert costs["chip_hours"] == pytest.approx(256 * costs["hours"])
    assert costs["images_per_second"] == pytest.approx(16 / seconds)


@pytest.mark.parametrize(
    ("asked", "source"), [(0.4, "asked"), (0.9, "schedule"), (0.0, "roofline")]
)
def test_a_share_that_the_roofline_rules_out_gives_way_to_the_schedule(asked, source):
    experiment = tiny_experiment(preflight__mfu=asked)
    costs = preflight.run_costs(experiment, hardware(), report_of(schedule={"step": 0.026}))
    assert costs["mfu_source"] == source
    if source == "schedule":
        assert costs["step_seconds"] == pytest.approx(0.026)
        assert costs["hours"] == pytest.approx(experiment.train.steps * 0.026 / 3600)


@pytest.mark.parametrize("start", [1, 4, 64, 300, 5000])
@pytest.mark.parametrize("per_example", [0.011, 0.13, 3.0])
def test_the_search_finds_the_largest_batch_in_a_few_compiles(start, per_example):
    """Memory as compilers use it: nearly linear in the batch, with a step in it."""
    limit = 15.75

    def measure(experiment):
        batch = experiment.train.batch_size // 4
        total = 8.0 + per_example * batch + (0.3 if batch > 20 else 0.0)
        parts = {"parameters": 2 * GiB, "optimizer": 4 * GiB, "EMA": 2 * GiB}
        memory = {
            "parts": parts,
            "total": int(total * GiB),
            "capacity": int(limit * GiB),
            "fits": total <= limit,
        }
        return {"memory": memory, "batch": {"global": 4 * batch, "per_replica": batch}}

    experiment = tiny_experiment(train__batch_size=4 * start)
    found = search.largest_batch(experiment, measure(experiment), measure)
    assert len(found["tries"]) <= 1 + search.BATCH_COMPILES
    true = max(
        (b for b in range(1, 1000) if 8.0 + per_example * b + (0.3 if b > 20 else 0) <= limit),
        default=None,
    )
    largest = found["largest_per_replica"]
    assert largest <= true
    # Above 16 batches go in eights.
    assert largest >= (true if true < 16 else 0.9 * true - 8)
    assert found["largest_global"] == 4 * largest


def test_no_batch_fits_beside_a_state_that_does_not():
    memory = {
        "parts": {"parameters": 10 * GiB, "optimizer": 20 * GiB, "EMA": 10 * GiB},
        "capacity": 16 * GiB,
    }
    tries = [{"per_replica": 4, "fits": False, "total": 45 * GiB}]
    assert search.next_batch(tries, memory) in (1, 2)
    tries.append({"per_replica": 1, "fits": False, "total": 42 * GiB})
    assert search.next_batch(tries, memory) is None


def test_every_mesh_divides_devices_heads_and_batch():
    experiment = tiny_experiment(train__batch_size=8, model__embed_dim=24)
    meshes = search.possible_meshes(experiment, 16)
    assert all(math.prod(mesh) == 16 for mesh in meshes)
    # There are no sixteen parts of a batch of eight, nor sixteen parts of eight heads or of 24
    # channels.
    assert {tensor for _, _, tensor in meshes} == {2, 4, 8}
    assert {fsdp for _, fsdp, _ in meshes} == {1, 2, 4, 8}
    assert (2, 4, 2) in meshes
    assert len(set(meshes)) == len(meshes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"topology": "v7:2x2"},
            "config.preflight.topology is 'v7:2x2', expected v4, v5e, v5p or v6e with a shape",
        ),
        (
            {"num_slices": 2},
            "config.preflight.num_slices is 2, expected 1 where config.preflight.topology is empty",
        ),
        (
            {"search": True},
            "config.preflight.search is True, but memory and speed of 'cpu' are not known",
        ),
    ],
)
def test_bad_input_is_one_sentence(changes, message, tmp_path):
    experiment = tiny_experiment()
    experiment = dataclasses.replace(
        experiment, preflight=dataclasses.replace(experiment.preflight, **changes)
    )
    with pytest.raises(UserError, match=message):
        preflight.run(experiment, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.tpu
def test_the_mesh_with_the_best_compiled_step_is_taken():
    pytest.importorskip("libtpu")
    experiment = tiny_experiment(
        preflight__topology="v5e:4x4", train__batch_size=64, mesh__data=8, mesh__tensor=2
    )
    slices = preflight.open_hardware(experiment)
    parts = preflight.open_parts(experiment, slices)
    _, state = abstract_state(parts)

    def figures(parts, bound):
        roofline = {"bound": bound, "no_overlap": 2 * bound, "highest_mfu": 0.5}
        sizes = {"parameters": shard_bytes(state.params), "optimizer": 0, "EMA": 0}
        memory = {"parts": sizes, "total": GiB, "capacity": slices.capacity, "fits": True}
        return preflight.describe(parts, slices) | {"roofline": roofline, "memory": memory}

    asked = []

    def measure(changed):
        asked.append(changed.mesh)
        return figures(preflight.open_parts(changed, slices), 1.0 / len(asked))

    base = figures(parts, 3.0)
    batch = {"tries": [search._try(base)]}
    found = search.best_mesh(experiment, slices, state, base, batch, measure)
    # Of those that were asked for the second was said to be faster.
    assert len(asked) == search.MESH_COMPILES
    assert found["best"] == dataclasses.asdict(asked[1])
    assert [row["mesh"] for row in found["compiled"]] == [
        base["mesh"],
        *map(dataclasses.asdict, asked),
    ]
    # With hardly any memory only those are left that split the state.
    small = dataclasses.replace(slices, capacity=shard_bytes(state) // 4)
    line = (0.0, 0.0)
    left = search.estimate_meshes(experiment, small, state, base, line)
    assert left
    assert all(one["mesh"]["fsdp"] * one["mesh"]["tensor"] > 2 for one in left)


@pytest.mark.tpu
def test_the_tiny_run_fits_a_tpu_that_is_not_there(tmp_path):
    pytest.importorskip("libtpu")
    line = preflight.run(
        tiny_experiment(preflight__topology="v5e:2x2", model__scan_blocks=True), tmp_path
    )
    report = json.loads((tmp_path / "preflight.json").read_text())
    assert line.startswith("fits: ")
    assert report["versions"]["libtpu"]
    assert " MiB of 15.75 GiB a chip on v5e:2x2 (4 chips), step >= " in line
    assert report["batch"] == {"global": 16, "per_chip": 4, "per_replica": 4}
    # Pure data parallelism: every gradient, and the loss, is summed over the four chips once.
    (row,) = report["collectives"]
    parameters = 4 * report["model"]["parameters"]
    assert (row["kind"], row["network"]) == ("all-reduce", "ici")
    assert parameters <= row["bytes"] <= 1.1 * parameters
    assert row["wire_bytes"] == pytest.approx(1.5 * row["bytes"], rel=0.01)
    assert report["flops"]["compiled"] == pytest.approx(report["flops"]["model"], rel=0.1)
    schedule = report["schedule"]
    # The four chips are a square: two links each, of 50 GB/s. What computes takes longer than its
    # products at the peak.
    assert schedule["communication"] == pytest.approx(row["wire_bytes"] / 100e9)
    assert schedule["compute"] > report["roofline"]["compute"]
    assert schedule["step"] == pytest.approx(schedule["compute"] + schedule["exposed"])


@pytest.mark.tpu
def test_slices_talk_over_the_data_center_network(tmp_path):
    pytest.importorskip("libtpu")
    line = preflight.run(
        tiny_experiment(preflight__topology="v5e:2x2", preflight__num_slices=2), tmp_path
    )
    report = json.loads((tmp_path / "preflight.json").read_text())
    assert "on 2 x v5e:2x2 (8 chips)" in line
    sent = {row["network"]: row["wire_bytes"] for row in report["collectives"]}
    # A slice's four chips share the sum that crosses: each sends a quarter of the gradients, small
    # ones padded.
    parameters = 4 * report["model"]["parameters"]
    assert 0.25 * parameters < sent["dcn"] < 3 * parameters
    assert sent["ici"] > 0
    networks = report["schedule"]["networks"]
    assert networks["dcn"]["communication"] == pytest.approx(
        sent["dcn"] / TPUS["v5e"].dcn_bandwidth
    )
    # What crosses slices is sent beside the program.
    assert networks["dcn"]["hidden"] > 0


@pytest.mark.tpu
def test_a_batch_too_large_is_refused_by_the_compiler(tmp_path):
    pytest.importorskip("libtpu")
    experiment = tiny_experiment(preflight__topology="v5e:1x1", train__batch_size=2**23)
    with pytest.raises(
        Failed, match=r"^does not fit: [\d.]+ of 15.75 GiB a chip on v5e:1x1 \(1 chip\)"
    ):
        preflight.run(experiment, tmp_path)
    memory = json.loads((tmp_path / "preflight.json").read_text())["memory"]
    assert memory["total"] > memory["capacity"] == TPUS["v5e"].hbm
