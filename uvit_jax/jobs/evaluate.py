"""The job `evaluate`: draws or reads samples, scores them, and writes a report."""

import dataclasses
import pathlib

from jax.sharding import Mesh

from uvit_jax.data.image_sources.crops import Size
from uvit_jax.errors import counted
from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.job_sections import EvaluateConfig
from uvit_jax.experiment.opened import open_captions, open_for_sampling
from uvit_jax.experiment.text_states import read_prompts
from uvit_jax.experiment.weights import Weights, averaged_weights, check_lengths, open_weights
from uvit_jax.experiment.workdir import open_workdir
from uvit_jax.jobs.evaluation.feature_networks import open_feature_network
from uvit_jax.jobs.evaluation.found_samples import found_record, open_samples
from uvit_jax.jobs.evaluation.image_streams import ImageStream, Shape
from uvit_jax.jobs.evaluation.reference_images import (
    ReferenceSource,
    open_reference_images,
    reference_source,
)
from uvit_jax.jobs.evaluation.reference_statistics import (
    check_images,
    make_reference,
    reference_file,
)
from uvit_jax.jobs.evaluation.report import summary
from uvit_jax.jobs.evaluation.report_folder import report_folder
from uvit_jax.jobs.evaluation.resumable_evaluation import open_evaluation
from uvit_jax.jobs.evaluation.sweep import Point, points_of, report_sweep
from uvit_jax.jobs.sampling.conditions import Conditions, open_conditions
from uvit_jax.jobs.sampling.generation import Generation, make_generation
from uvit_jax.jobs.sampling.pictures import title_of
from uvit_jax.jobs.sampling.record import agree_on_samples, drawn_samples
from uvit_jax.metrics.feature_network import Extraction
from uvit_jax.parallel import hosts
from uvit_jax.parallel.mesh import make_mesh


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Scores samples of a model or of a folder; returns one line: the scores and the report's path.

    Raises:
      UserError: for what is wrong with the config, weights, samples or reference, before any device
        works; for NaN images or a full disk, later.
    """
    evaluate, source = experiment.evaluate, reference_source(experiment)
    if evaluate.make_reference:
        mesh, model_size = (
            make_mesh(experiment.mesh, prefix="config.mesh."),
            experiment.model.input_size,
        )
        return _make_reference(evaluate, source, model_size, workdir, mesh)
    if evaluate.samples:
        return _score_found(
            evaluate, source, workdir, make_mesh(experiment.mesh, prefix="config.mesh.")
        )
    return _score_drawn(experiment, workdir)


def _make_reference(
    evaluate: EvaluateConfig,
    source: ReferenceSource,
    model_size: Size,
    workdir: pathlib.Path,
    mesh: Mesh,
) -> str:
    """Writes the statistics of a data set."""
    hosts.on_all(check_images, source)
    network = hosts.on_all(open_feature_network, evaluate)
    stream = hosts.on_all(open_reference_images, source, source.size(model_size), mesh)
    out = reference_file(evaluate.out, workdir)
    open_workdir(out.parent, "the folder of config.evaluate.out" if evaluate.out else "workdir")
    extraction = Extraction(network, mesh, network.reference_kinds)
    make_reference(stream, extraction, out, num_features=evaluate.num_features)
    h, w, c = stream.shape
    images = counted(stream.count, "image")
    return f"made the reference of {images} of {h}x{w}x{c} with {network.name}: see {out}"


def _score_found(
    evaluate: EvaluateConfig, source: ReferenceSource, workdir: pathlib.Path, mesh: Mesh
) -> str:
    """Scores the images of a folder or of an .npz."""
    stream = hosts.on_all(open_samples, evaluate.samples)
    evaluation = open_evaluation(
        evaluate, source, workdir, mesh, stream.shape, num_samples=stream.count
    )
    samples, title = found_record(stream), pathlib.Path(evaluate.samples).stem
    out = report_folder(evaluate.out, workdir, f"found_{title}", evaluation.plan(samples))
    return summary(evaluation.run(stream, samples, out, title), out)


def _score_drawn(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Draws samples and scores them, once or at every point of a sweep."""
    evaluate, diffusion = experiment.evaluate, experiment.diffusion
    points = points_of(evaluate.sweep, experiment.sample, p_uncond=diffusion.p_uncond)
    assembled, conditions = _open_model(experiment, workdir, points)
    evaluation = open_evaluation(
        evaluate,
        reference_source(experiment),
        workdir,
        assembled.mesh,
        assembled.image_shape,
        num_samples=evaluate.num_samples,
        has_texts=experiment.model.context_dim > 0,
        tokenizer=experiment.text_encoder.tokenizer,
    )

    # --- Each point has its own folder, and goes on after a kill. Only another number of steps
    # compiles another sampler.
    generation = make_generation(assembled, diffusion, experiment.sample, conditions)
    weights: Weights | None = None
    reports, outs = [], []
    for point in points:
        asked = dataclasses.replace(experiment, sample=point.sample(experiment.sample))
        sample = asked.sample
        if point.field == "steps":
            generation = make_generation(assembled, diffusion, sample, conditions)
        generation = dataclasses.replace(generation, guidance_scale=sample.guidance_scale)
        if point.field == "ema":
            weights = averaged_weights(
                assembled.abstract_params, workdir, length=point.value, step=sample.step
            )
        elif weights is None:
            weights = open_weights(experiment, assembled, workdir)

        count, captions = evaluate.num_samples, evaluate.captions
        samples = drawn_samples(
            asked, assembled, conditions, weights, count=count, captions=captions
        )
        stream = _stream_of_draws(generation, weights, count, assembled.image_shape)
        name = f"{weights.folder}_{sample.solver}_{sample.steps}_guidance_{sample.guidance_scale:g}"
        plan = evaluation.plan(samples)
        out = report_folder(evaluate.out, workdir, name, plan, point=point.folder)
        title = title_of(weights.title, sample)
        reports.append(evaluation.run(stream, samples, out, title, conditions))
        outs.append(out)
    if not evaluate.sweep:
        return summary(reports[0], outs[0])
    sweep = evaluate.sweep
    return hosts.on_first(report_sweep, sweep, points, reports, outs, evaluate.out, workdir) or ""


def _open_model(
    experiment: Experiment, workdir: pathlib.Path, points: list[Point]
) -> tuple[Assembled, Conditions]:
    """Opens the model and what samples are of, and checks that all hosts found the same."""
    evaluate, init_from = experiment.evaluate, experiment.init_from
    captions = hosts.on_all(open_captions, evaluate.captions) if evaluate.captions else None
    opened = hosts.on_all(open_for_sampling, experiment, workdir, captions)
    assembled, text, sample = opened.assembled, opened.text, experiment.sample
    prompts = read_prompts(sample.prompts) if text else ()
    agree_on_samples(assembled.card, prompts, init_from, workdir)
    if points[0].field == "ema":
        lengths = [point.value for point in points]
        hosts.on_all(lambda: check_lengths(init_from, workdir, lengths, step=sample.step))
    conditions = hosts.on_all(
        lambda: open_conditions(
            experiment,
            assembled.card,
            count=evaluate.num_samples,
            text=text,
            captions=captions,
        )
    )
    return assembled, conditions


def _stream_of_draws(
    generation: Generation, weights: Weights, count: int, shape: Shape
) -> ImageStream:
    return ImageStream(
        weights.title, count, shape, lambda first: generation.batches(weights.params, first, count)
    )
