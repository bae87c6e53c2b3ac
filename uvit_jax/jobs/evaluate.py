"""The job `evaluate`: samples in, drawn or found; their scores, with everything these depend on,
and a grid out.
"""

import pathlib
from typing import Any

from jax.sharding import Mesh

from uvit_jax.data.originals.crops import Size
from uvit_jax.data.sources import SOURCES
from uvit_jax.errors import UserError, counted
from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.opened import open_captions, open_for_sampling
from uvit_jax.experiment.text_states import read_prompts
from uvit_jax.experiment.weights import Weights, averaged_weights, check_lengths, open_weights
from uvit_jax.experiment.workdir import folder_name, open_workdir
from uvit_jax.jobs.evaluation.feature_networks import choose_metrics, open_extractor
from uvit_jax.jobs.evaluation.image_streams import (
    ImageStream,
    open_reference_images,
    open_samples,
    reference_field,
)
from uvit_jax.jobs.evaluation.references import (
    Shape,
    is_statistics,
    make_reference,
    num_features,
    obtain_reference,
    reference_name,
    with_features,
)
from uvit_jax.jobs.evaluation.report import REPORT, found_samples
from uvit_jax.jobs.evaluation.scored_images import Evaluation
from uvit_jax.jobs.evaluation.scoring import ClipPair
from uvit_jax.jobs.evaluation.sweep import Point, points_of, report_sweep
from uvit_jax.jobs.sampling.conditions import open_conditions
from uvit_jax.jobs.sampling.generation import Generation, make_generation
from uvit_jax.jobs.sampling.pictures import title_of
from uvit_jax.jobs.sampling.record import agree_on_samples, drawn_samples
from uvit_jax.metrics.features import Extraction
from uvit_jax.metrics.metric_names import OF_SAMPLES
from uvit_jax.metrics.scores import kinds
from uvit_jax.parallel import hosts
from uvit_jax.parallel.mesh import make_mesh

# Shown in the line that the job ends with, the first of those there are.
_HEADLINES = 4


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Scores samples of a model or of a folder; returns one line with the scores and where the
    report is.

    Raises:
      UserError: for what is wrong with the config, weights, samples or reference, before any device
        works; for NaN images, or a full disk, on the way.
    """
    if experiment.evaluate.make_reference:
        return _make_reference(experiment, workdir)
    if experiment.evaluate.samples:
        return _score_found(experiment, workdir)
    return _score_model(experiment, workdir)


def _make_reference(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Writes the statistics of a data set."""
    name, mesh = reference_name(experiment), make_mesh(experiment.mesh, prefix="config.mesh.")
    if hosts.on_all(is_statistics, name, reference_field(experiment)):
        raise UserError(
            f"{reference_field(experiment)} is {name!r}, which holds statistics: expected images "
            f"to make some of"
        )
    extractor = hosts.on_all(open_extractor, experiment)
    stream = hosts.on_all(
        open_reference_images, experiment, name, _reference_size(experiment, name), mesh
    )
    out = experiment.evaluate.out or str(workdir / "reference.npz")
    if not out.endswith(".npz"):
        raise UserError(
            f"config.evaluate.out is {out!r}, expected a name that ends in .npz for the reference"
        )
    if pathlib.Path(out).is_dir():
        raise UserError(
            f"config.evaluate.out is {out!r}, which is a folder, expected the name of a file to "
            f"write"
        )
    open_workdir(
        pathlib.Path(out).parent,
        "the folder of config.evaluate.out" if experiment.evaluate.out else "workdir",
    )
    extraction = Extraction(extractor, mesh, extractor.reference_kinds)
    make_reference(experiment, stream, extraction, pathlib.Path(out))
    h, w, c = stream.shape
    return (
        f"made the reference of {counted(stream.count, 'image')} of {h}x{w}x{c} with "
        f"{extractor.name}: see {out}"
    )


def _reference_size(experiment: Experiment, name: str) -> Size:
    """Size of the images: what a data set has, `config.prepare.image_size`, or that of the model's
    images.
    """
    if name in SOURCES or name.endswith(".npz") or pathlib.Path(name, "manifest.json").exists():
        return 0
    if experiment.prepare.image_size:
        return experiment.prepare.image_size
    if experiment.autoencoder.name:
        raise UserError(
            "config.prepare.image_size is 0, expected the side of the reference's images (the "
            "model is of latents)"
        )
    return experiment.model.input_size


def _score_found(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Scores a folder or an .npz."""
    mesh = make_mesh(experiment.mesh, prefix="config.mesh.")
    stream = hosts.on_all(open_samples, experiment.evaluate.samples)
    evaluation = _open_evaluation(
        experiment, workdir, stream.shape, mesh, stream.count, has_texts=False
    )
    samples, title = found_samples(stream), pathlib.Path(experiment.evaluate.samples).stem
    out = _out(experiment, workdir, f"found_{title}", evaluation.plan(samples))
    report = evaluation.run(stream, samples, out, title)
    return _summary(report, out)


def _score_model(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Draws samples and scores them, once or for every value of a sweep."""
    config = experiment.evaluate
    points = points_of(experiment)
    captions = hosts.on_all(lambda: open_captions(config.captions) if config.captions else None)
    opened = hosts.on_all(open_for_sampling, experiment, workdir, captions)
    assembled, text, init_from = opened.assembled, opened.text, experiment.init_from
    prompts = read_prompts(experiment.sample.prompts) if text else ()
    agree_on_samples(assembled.card, prompts, init_from, workdir)
    if points[0].field == "ema":
        lengths = [point.value for point in points]
        hosts.on_all(
            lambda: check_lengths(init_from, workdir, lengths, step=experiment.sample.step)
        )
    conditions = hosts.on_all(
        lambda: open_conditions(
            experiment, assembled.card, count=config.num_samples, text=text, captions=captions
        )
    )
    shape = assembled.image_shape
    has_texts = experiment.model.context_dim > 0
    evaluation = _open_evaluation(
        experiment, workdir, shape, assembled.mesh, config.num_samples, has_texts=has_texts
    )

    # --- One evaluation, or one for each point of a sweep; each has its own folder and goes on
    # after a kill.
    reports, outs = [], []
    base = make_generation(assembled, experiment.diffusion, experiment.sample, conditions)
    weights: Weights | None = None
    for point in points:
        asked = point.experiment(experiment)
        generation = point.generation(base, assembled, experiment.diffusion, asked.sample)
        if point.field == "ema":
            weights = averaged_weights(
                assembled.abstract_params, workdir, length=point.value, step=asked.sample.step
            )
        elif weights is None:
            weights = open_weights(experiment, assembled, workdir)
        report, out = _evaluate(evaluation, asked, assembled, generation, weights, workdir, point)
        reports.append(report)
        outs.append(out)
    if not config.sweep:
        return _summary(reports[0], outs[0])
    return hosts.on_all(
        lambda: (
            _finish_sweep(experiment, workdir, points, reports, outs) if hosts.is_first() else ""
        )
    )


def _finish_sweep(
    experiment: Experiment,
    workdir: pathlib.Path,
    points: list[Point],
    reports: list[dict[str, Any]],
    outs: list[pathlib.Path],
) -> str:
    """Writes the chart beside the points' folders, or in one of its own in the workdir's
    evaluations.
    """
    plans = {"plans": [report["plan"] for report in reports]}
    folder = workdir / "evaluations" / folder_name(f"sweep_{points[0].field}", plans)
    if experiment.evaluate.out:
        folder = pathlib.Path(experiment.evaluate.out)
    return report_sweep(experiment.evaluate.sweep, points, reports, outs, folder)


def _evaluate(
    evaluation: Evaluation,
    experiment: Experiment,
    assembled: Assembled,
    generation: Generation,
    weights: Weights,
    workdir: pathlib.Path,
    point: Point,
) -> tuple[dict[str, Any], pathlib.Path]:
    config, sample, conditions = experiment.evaluate, experiment.sample, generation.conditions
    samples = drawn_samples(
        experiment,
        assembled,
        conditions,
        weights,
        count=config.num_samples,
        captions=config.captions,
    )
    stream = ImageStream(
        weights.title,
        config.num_samples,
        assembled.image_shape,
        lambda first: generation.batches(weights.params, first, config.num_samples),
    )
    name = f"{weights.folder}_{sample.solver}_{sample.steps}_guidance_{sample.guidance_scale:g}"
    out = _out(experiment, workdir, name, evaluation.plan(samples), point)
    title = title_of(weights.title, sample)
    return evaluation.run(stream, samples, out, title, conditions), out


def _open_evaluation(
    experiment: Experiment,
    workdir: pathlib.Path,
    shape: Shape,
    mesh: Mesh,
    num_samples: int,
    *,
    has_texts: bool,
) -> Evaluation:
    """The extractor at work, the reference and the metrics that the two allow."""
    config = experiment.evaluate
    extractor = hosts.on_all(open_extractor, experiment)
    clip = hosts.on_all(lambda: ClipPair(experiment, mesh) if config.clip and has_texts else None)
    every = Extraction(extractor, mesh, extractor.reference_kinds)
    reference = obtain_reference(experiment, workdir, every, shape)
    metrics, refused = choose_metrics(
        experiment,
        extractor,
        has_spatial=reference.spatial is not None,
        num_reference=hosts.on_all(num_features, reference),
        has_texts=has_texts,
        num_samples=num_samples,
    )
    if any(name in OF_SAMPLES for name in metrics):
        reference = with_features(reference, every, shape)
    extraction = Extraction(extractor, mesh, kinds(metrics))
    clip, out_name = (
        clip if "clip" in metrics else None,
        "config.evaluate.out" if config.out else "workdir",
    )
    return Evaluation(metrics, refused, extraction, reference, clip, config.save, out_name)


def _out(
    experiment: Experiment,
    workdir: pathlib.Path,
    title: str,
    plan: dict,
    point: Point | None = None,
) -> pathlib.Path:
    """The folder of a report."""
    config = experiment.evaluate
    if config.out:
        return (
            pathlib.Path(config.out) / point.folder
            if point and point.folder
            else pathlib.Path(config.out)
        )
    return workdir / "evaluations" / folder_name(title, plan)


def _summary(report: dict, out: pathlib.Path) -> str:
    if not report:
        return ""
    names = [name for name in report["metrics"] if not name.endswith(("_std", "_bias"))]
    # What only a text model has, and is asked for by a name of its own, is not left out.
    names = [*names[:_HEADLINES], *(name for name in names[_HEADLINES:] if name == "clip_score")]
    numbers = ", ".join(f"{name} {report['metrics'][name]:.4g}" for name in names)
    images = counted(report["samples"]["count"], "image")
    return f"evaluated {images}: {numbers}: see {out}/{REPORT}, evaluation.txt, grid.png"
