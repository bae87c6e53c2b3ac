import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.jobs.runs import tiny_experiment
from uvit_jax.data.training_data import load_built_in
from uvit_jax.errors import Failed, UserError
from uvit_jax.experiment.step_program import abstract_inputs, batch_fields
from uvit_jax.jobs import preflight
from uvit_jax.jobs.forecast import figures
from uvit_jax.jobs.forecast.program import Refusal
from uvit_jax.jobs.forecast.report import table
from uvit_jax.models.flops import forward_flops
from uvit_jax.parallel.chips import TPUS, GiB
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh


def compiled_figures(report):
    """Figures of a report that do not depend on the compiler."""
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
        np.zeros(1, np.int64), np.zeros(1, bool), fields=batch_fields(experiment.model)
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
    monkeypatch.setattr(figures, "compile_program", lambda lowered: (refusal, 1.0))
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
