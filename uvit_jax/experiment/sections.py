"""Sections of a config that say what is trained: frozen dataclasses that check their own fields.

Each field is a command line flag.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from uvit_jax.diffusion.losses import WEIGHTINGS
from uvit_jax.diffusion.predictions import PREDICTIONS
from uvit_jax.diffusion.schedules import RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
from uvit_jax.errors import UserError, check_choice
from uvit_jax.models.uvit_config import DTYPES
from uvit_jax.parallel.compiler import OVERLAPS

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "vp_linear": VPLinear,
    "vp_cosine": VPCosine,
    "stable_diffusion": VPDiscrete.stable_diffusion,
    "rectified_flow": RectifiedFlow,
}


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The noise, and the prediction that the network learns.

    Attributes:
      schedule: "vp_linear", "vp_cosine" or "rectified_flow" (continuous), or "stable_diffusion"
        (discrete, 1000 betas).
      prediction: "noise", "x0", "v" or "flow".
      weighting: of the loss over time, "none" or "min_snr".
      p_uncond: share of training examples whose condition is dropped; above 0 the label table's
        last row is the empty label.
    """

    schedule: str = "vp_linear"
    prediction: str = "noise"
    weighting: str = "none"
    p_uncond: float = 0.0

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, tuple(SCHEDULES))
        check_choice("prediction", self.prediction, tuple(PREDICTIONS))
        check_choice("weighting", self.weighting, tuple(WEIGHTINGS))
        if not 0 <= self.p_uncond < 1:
            raise UserError(f"p_uncond is {self.p_uncond}, expected a number from 0 to below 1")

    def make_schedule(self) -> Schedule:
        """The schedule of this name."""
        return SCHEDULES[self.schedule]()


@dataclasses.dataclass(frozen=True)
class AutoencoderSection:
    """The autoencoder between images and latents; without a name the model is one of pixels.

    Attributes:
      name: a Hugging Face name as "stabilityai/sd-vae-ft-ema", a folder, or a weights file; empty
        for none.
      scale: factor of the latents; None for the autoencoder's own (0.18215 for Stable
        Diffusion's), or, for the TAESD family, to bring each channel to mean 0 and standard
        deviation 1 by the data set's statistics.
      dtype: that it computes in.
      batch_size: images that each device encodes or decodes at a time.
    """

    name: str = ""
    scale: float | None = None
    dtype: str = "float32"
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)
        check_at_least(self, 1, "batch_size")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise UserError(
                f"scale is {self.scale}, expected a positive number, or None for the "
                f"autoencoder's own"
            )


@dataclasses.dataclass(frozen=True)
class TextEncoderSection:
    """The text encoder: makes of captions and prompts the states that a text model attends to.

    Attributes:
      name: a Hugging Face name as "openai/clip-vit-large-patch14", a folder, or a weights file
        beside its config.json; "random:SEED" for a tower that was never trained; empty for a model
        without text.
      tokenizer: a name, a folder, or OpenAI's merges file; empty for the encoder's own.
      dtype: that it computes in.
      batch_size: texts that each device encodes at a time.
    """

    name: str = ""
    tokenizer: str = ""
    dtype: str = "float32"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)
        check_at_least(self, 1, "batch_size")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training data, and how it is fetched.

    Attributes:
      source: "digits", or the folder of a prepared data set (the job `prepare` makes one).
      flip: True to replace each example by its mirror image half of the time.
      prefetch: batches made ready on the devices ahead of time.
      workers: processes that read; 0 reads in threads of this process, which is enough for latents.
    """

    source: str = "digits"
    flip: bool = False
    prefetch: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        if not self.source:
            raise UserError(
                "source is empty, expected 'digits' or the folder of a prepared data set"
            )
        check_at_least(self, 1, "prefetch")
        check_at_least(self, 0, "workers")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run: its length, its batches, and how often it logs, draws and saves.

    Intervals are in steps; 0 is once, at the end.

    Attributes:
      steps: updates of the weights, those of earlier starts of the run included.
      batch_size: examples of one update, on all devices together.
      microbatches: parts of a batch that go through the network one after another, where memory is
        short: 8 makes the paper's batch of 1024 one of 128 at a time, with the same gradients.
      overlap: of communication and computation on a TPU: "auto", "sparsecore" or "none"
        (`parallel.compiler`).
      seed: of the initial weights, the order of the data, times, noises and dropped conditions.
      log_every: steps between lines of metrics.
      image_every: steps between grids of samples.
      save_every: steps between checkpoints.
      num_images: samples in the grids drawn while training.
      keep_last: newest checkpoints kept.
      keep_every: checkpoints at multiples of this step, 0 included, are kept for good; 0 for none.
    """

    steps: int = 500_000
    batch_size: int = 128
    microbatches: int = 1
    overlap: str = "auto"
    seed: int = 0
    log_every: int = 100
    image_every: int = 5000
    save_every: int = 5000
    num_images: int = 64
    keep_last: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        check_at_least(
            self, 1, "steps", "batch_size", "microbatches", "log_every", "num_images", "keep_last"
        )
        check_at_least(self, 0, "image_every", "save_every", "keep_every")
        check_choice("overlap", self.overlap, OVERLAPS)
        check_seed(self.seed)


def check_at_least(section: Any, least: int, *fields: str) -> None:
    """Raises a UserError naming the first of a section's fields that is below `least`."""
    for field in fields:
        if getattr(section, field) < least:
            raise UserError(f"{field} is {getattr(section, field)}, expected at least {least}")


def check_seed(seed: int) -> None:
    """Raises a UserError for a seed that is not a 32-bit number."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}, expected 0 to 2^32 - 1")
