"""The job `sample`: a workdir's weights in, images out, as PNGs or one .npz, and a grid of the first of them."""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from uvit_jax.data.sources import SOURCES
from uvit_jax.errors import UserError
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.jobs import pictures
from uvit_jax.jobs.conditions import Conditions, label_conditions, prompt_conditions, read_prompts
from uvit_jax.jobs.config import Experiment
from uvit_jax.jobs.datacard import DataCard, card_of_config, card_of_source, identity, read_card
from uvit_jax.jobs.setup import Parts, assemble, open_experiment_autoencoder, open_source
from uvit_jax.jobs.text import TextStates, open_text_states
from uvit_jax.jobs.weights import check_init_from, initial_weights
from uvit_jax.jobs.workdir import check_architecture, open_workdir, saved_config
from uvit_jax.parallel import hosts
from uvit_jax.telemetry.atomic import atomic_write
from uvit_jax.telemetry.images import npz_writer, save_png, to_uint8
from uvit_jax.telemetry.progress import Progress
from uvit_jax.training.checkpoint import Checkpoints
from uvit_jax.training.state import Params

LOG = logging.getLogger("uvit_jax")

# The grid shows this many samples at most: a page that a screen can hold.
GRID_SAMPLES = 100


def run(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Draws `config.sample.num_samples` images; returns one line that says what was made and where.

    Raises:
      UserError: for what is wrong with the config, the weights or the folder, before any device works.
    """
    config = experiment.sample
    parts, text = hosts.together(_open, experiment, workdir)
    prompts = read_prompts(config.prompts) if text else ()
    steps = sorted(path.name for path in workdir.glob("checkpoints/[0-9]*"))
    hosts.agree({**identity(parts.card), "config.sample.prompts": prompts, "the content of --workdir": steps})
    conditions = _conditions(parts, text)
    weights = _weights(parts, workdir)
    out = pathlib.Path(config.out) if config.out else workdir / "samples" / f"{weights.folder}_seed_{config.seed}"
    open_workdir(out)
    LOG.info("sampling %d images with %s", config.num_samples, weights.title)

    # --- Batch after batch: the sampler's program is compiled once, all hosts draw, and one writes.
    indices = np.arange(config.num_samples)
    labels = conditions.of(indices) if conditions.labels else None
    sampler, began = parts.sampler(conditions.null), time.monotonic()
    shown: list[np.ndarray] = []
    with (
        Progress(config.num_samples, description="sample", active=hosts.is_first()) as progress,
        _writer(experiment, out, labels) as write,
    ):
        for first in range(0, config.num_samples, config.batch_size):
            count = min(config.batch_size, config.num_samples - first)
            batch = to_uint8(
                pictures.draw_samples(
                    parts, sampler, weights.params, conditions, first=first, count=count, batch_size=config.batch_size
                )
            )
            write(first, batch)
            shown.append(batch[: max(GRID_SAMPLES - first, 0)])
            progress.update(first + count)
    seconds = time.monotonic() - began

    # --- What they are, and a picture of the first of them.
    made = "samples.npz" if config.format == "npz" else f"{config.num_samples} PNGs"
    if hosts.is_first():
        if config.prompts:
            with atomic_write(out / "prompts.txt") as file:
                file.write("".join(f"{name}\n" for name in conditions.names_of(indices) or ()).encode())
        title = f"{weights.title}, {config.solver} {config.steps}, guidance {config.guidance_scale:g}"
        pictures.save_grid(np.concatenate(shown), conditions, out / "grid.png", title)
    return f"sampled {config.num_samples} images in {seconds:.1f} s: see {out}/grid.png, {made}"


@contextlib.contextmanager
def _writer(
    experiment: Experiment, out: pathlib.Path, labels: np.ndarray | None
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """`write(first, images)`, called batch after batch; nothing on hosts other than the first."""
    config = experiment.sample

    def save_pngs(first: int, images: np.ndarray) -> None:
        for i, image in enumerate(images, first):
            save_png(image, out / (f"{i:06d}.png" if labels is None else f"{i:06d}_label_{labels[i]}.png"))

    if not hosts.is_first():
        yield lambda first, images: None
    elif config.format == "png":
        yield save_pngs
    else:
        with npz_writer(out / "samples.npz", config.num_samples, labels) as append:
            yield lambda first, images: append(images)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """What is sampled with: on the mesh, for a picture's title, for a folder's name."""

    params: Params
    title: str
    folder: str


def _open(experiment: Experiment, workdir: pathlib.Path) -> tuple[Parts, TextStates | None]:
    """The parts and, for a model of text, what encodes prompts, opened and checked against each other."""
    if _samples_from_elsewhere(experiment, workdir):
        check_init_from(experiment.init_from)
    autoencoder = open_experiment_autoencoder(experiment)
    parts = assemble(experiment, _card(experiment, workdir, autoencoder), autoencoder, section="sample")
    if parts.card.normalization is not None and autoencoder is None:
        raise UserError(
            f"config.autoencoder.name is empty, expected {parts.card.autoencoder!r} or another decoder of its latents: "
            "a hub name, a folder or a weights file"
        )
    if not experiment.model.context_dim:
        return parts, None
    if not experiment.sample.prompts:
        raise UserError('config.sample.prompts is empty, expected texts as "a red bus; two cats", or a .txt file')
    if not experiment.text_encoder.name:
        raise UserError(
            f"config.text_encoder.name is empty, expected {parts.card.text_encoder or 'that of the model'!r}: a hub "
            "name or a folder"
        )
    read_prompts(experiment.sample.prompts)
    text = open_text_states(experiment, parts.mesh)
    parts.card.check_text(text.encoder)
    return parts, text


def _conditions(parts: Parts, text: TextStates | None) -> Conditions:
    """The classes or prompts asked for."""
    if text is None:
        return label_conditions(parts.experiment, parts.card.class_names)
    return prompt_conditions(parts.experiment, text)


def _samples_from_elsewhere(experiment: Experiment, workdir: pathlib.Path) -> bool:
    """Whether `config.init_from` is what is asked for, and not just what the workdir's run began with."""
    init_from = experiment.init_from
    return bool(init_from) and (saved_config(workdir) or {}).get("init_from") != init_from


def _weights(parts: Parts, workdir: pathlib.Path) -> _Weights:
    """The weights of `config.init_from`, or the workdir's own where its run began with those."""
    config, init_from = parts.experiment.sample, parts.experiment.init_from
    if _samples_from_elsewhere(parts.experiment, workdir):
        name = pathlib.Path(init_from).stem
        return _Weights(initial_weights(parts, init_from), name, name)
    hosts.together(check_architecture, parts.experiment, workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    params, step = checkpoints.restore_weights(
        parts.abstract_params, weights=config.weights, step=None if config.step < 0 else config.step
    )
    return _Weights(params, f"the {config.weights} weights of step {step:,}", f"step_{step:08d}")


def _card(experiment: Experiment, workdir: pathlib.Path, autoencoder: Autoencoder | None) -> DataCard:
    """What is known of the data: the workdir says it, or the data set where it is at hand, or the config alone."""
    card = read_card(workdir)
    if card is not None:
        return card
    if experiment.data.source in SOURCES or pathlib.Path(experiment.data.source, "manifest.json").exists():
        return card_of_source(experiment, open_source(experiment), autoencoder)
    return card_of_config(experiment, autoencoder)
