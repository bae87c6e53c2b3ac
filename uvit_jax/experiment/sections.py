"""The sections of a config as frozen dataclasses that check their own fields; each field is a
command line flag.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from uvit_jax.data.originals.crops import CROPS, Size, sides
from uvit_jax.data.originals.decoding import MAX_PIXELS
from uvit_jax.diffusion.losses import WEIGHTINGS
from uvit_jax.diffusion.predictions import PREDICTIONS
from uvit_jax.diffusion.sampler import SamplerConfig
from uvit_jax.diffusion.schedules import RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
from uvit_jax.errors import UserError, check_choice
from uvit_jax.metrics.metric_names import FEATURE_NETWORKS, METRICS
from uvit_jax.models.frozen.resize import RESIZES
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
    """The noise and what the network predicts.

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

    def __post_init__(self):
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
    """What stands between images and latents; without a name the model is one of pixels.

    Attributes:
      name: a Hugging Face name as "stabilityai/sd-vae-ft-ema", a folder, or a weights file; empty
        for none.
      scale: what latents are multiplied by; None for the autoencoder's own (0.18215 for Stable
        Diffusion's), or, for the TAESD family, to bring each channel to mean 0 and standard
        deviation 1 by the data set's statistics.
      dtype: what it computes in.
      batch_size: images that each device encodes or decodes at a time.
    """

    name: str = ""
    scale: float | None = None
    dtype: str = "float32"
    batch_size: int = 16

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
        _check_at_least(self, 1, "batch_size")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise UserError(
                f"scale is {self.scale}, expected a positive number, or None for the "
                f"autoencoder's own"
            )


@dataclasses.dataclass(frozen=True)
class TextEncoderSection:
    """What makes of captions and prompts the states that a text model attends to.

    Attributes:
      name: a Hugging Face name as "openai/clip-vit-large-patch14", a folder, or a weights file
        beside its config.json; "random:SEED" for a tower that was never trained; empty for a model
        without text.
      tokenizer: a name, a folder, or OpenAI's merges file; empty for the encoder's own.
      dtype: what it computes in.
      batch_size: texts that each device encodes at a time.
    """

    name: str = ""
    tokenizer: str = ""
    dtype: str = "float32"
    batch_size: int = 32

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)
        _check_at_least(self, 1, "batch_size")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they are fetched.

    Attributes:
      source: "digits", or the folder of a prepared data set (the job `prepare` makes one).
      flip: whether each example is its mirror image half of the time.
      prefetch: batches made ready on the devices ahead of time.
      workers: processes that read; 0 reads in threads of this process, which is enough for latents.
    """

    source: str = "digits"
    flip: bool = False
    prefetch: int = 2
    workers: int = 0

    def __post_init__(self):
        if not self.source:
            raise UserError(
                "source is empty, expected 'digits' or the folder of a prepared data set"
            )
        _check_at_least(self, 1, "prefetch")
        _check_at_least(self, 0, "workers")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """From images to the sharded data set that training reads.

    Attributes:
      source: a folder of images (sub-folders are classes; or flat, with an optional metadata.jsonl,
        .csv or .parquet), "tfds:<name>", or a folder of the official repository's `<i>.npy`
        features.
      split: of a TFDS data set, or the sub-folder of `source` of that name where there is one.
      data_dir: where TFDS keeps its data sets; empty for its own default.
      out: the folder made; empty for `data.source`.
      latents: whether to store what `autoencoder` makes of the images; False stores pixels, as
        without an autoencoder.
      image_size: side of the images in pixels, or (height, width); 0 for what the model needs.
      crop: how an image becomes one of that size: "adm", "celeba" (squares alone), "lanczos" or
        "none".
      exif: whether images are turned as their EXIF orientation says; no published data set was.
      max_pixels: height times width of the largest picture that is decoded; a larger one can't be
        read.
      mirror: whether latents of each image's mirror image are stored beside its own.
      dtype: of stored latents and of the states of captions.
      batch_size: images encoded at a time, on all devices of a host together.
      images_per_shard: images in each shard; a run that was stopped goes on with the first shard
        not finished.
      threads: that read and crop images.
      on_error: what an image that can't be read does: "stop", or "skip" (counted and named in the
        manifest's folder).
      verify: read everything in `out` again and check it instead of making it.
    """

    source: str = ""
    split: str = "train"
    data_dir: str = ""
    out: str = ""
    latents: bool = True
    image_size: Size = 0
    crop: str = "adm"
    exif: bool = False
    max_pixels: int = MAX_PIXELS
    mirror: bool = True
    dtype: str = "float16"
    batch_size: int = 64
    images_per_shard: int = 4096
    threads: int = 8
    on_error: str = "stop"
    verify: bool = False

    def __post_init__(self):
        check_choice("crop", self.crop, tuple(CROPS))
        check_choice("dtype", self.dtype, ("float16", "bfloat16", "float32"))
        check_choice("on_error", self.on_error, ("stop", "skip"))
        _check_at_least(self, 1, "batch_size", "images_per_shard", "threads", "max_pixels")
        if self.image_size != 0 and min(sides(self.image_size)) < 1:
            raise UserError(
                f"image_size is {self.image_size}, expected at least 1, or 0 for what the model "
                f"needs"
            )
        height, width = sides(self.image_size)
        if self.crop == "celeba" and height != width:
            raise UserError(
                f"crop is 'celeba', which makes squares, but image_size is {self.image_size}"
            )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is measured of samples, and against what.

    Attributes:
      num_samples: how many are drawn (all of `samples` are scored); how they are drawn is
        `config.sample`'s.
      samples: a folder of images, or of samples that its samples.json announces, or an .npz, to
        score in place of drawing any.
      reference: an .npz of statistics, or images to make them of: a folder, a prepared data set,
        "tfds:<name>" or "digits"; empty for `config.data.source`.
      features: "own", the built-in features that every machine has, or "inception".
      metrics: "all" for those that the features and the reference allow, or some of fid, sfid, is,
        kid, precision, recall, density, coverage, clip.
      inception: "pt_inception-2015-12-05", FID's published weights, or a file of them.
      inception_sha256: of other weights that are meant to be used; their numbers are not called
        FID.
      resize: to 299x299 as "pytorch-fid", "tf1" (ADM's evaluator) or "clean" (clean-fid) does.
      dtype: what Inception-v3 computes in; statistics are float64 either way.
      clip: a CLIP with both towers, by hub name or folder, for the CLIP score of prompts or
        captions; empty for none.
      captions: a prepared data set with captions, for a model of text, that samples are drawn of;
        empty for `sample.prompts`.
      save: the samples too, as "png" files or an "npz" in ADM's format (arr_0, arr_1); empty for
        neither.
      sweep: a field and its values, as "guidance=0:1:0.1", "steps=10,20,50" or "ema=1000,10000"
        (its length in steps), each evaluated in turn.
      make_reference: make the statistics of `reference` and nothing else.
      num_features: images of the reference whose features are kept, for kid, precision, recall,
        density and coverage.
      out: folder of the report (of make_reference: the file); empty for one in the workdir's
        evaluations/ (without a workdir and a config, runs/evaluate).
      every: steps between evaluations while training, with one after the last step; 0 for none.
      train_samples: drawn at each of those.
    """

    num_samples: int = 50_000
    samples: str = ""
    reference: str = ""
    features: str = "own"
    metrics: str = "all"
    inception: str = "pt_inception-2015-12-05"
    inception_sha256: str = ""
    resize: str = "pytorch-fid"
    dtype: str = "float32"
    clip: str = ""
    captions: str = ""
    save: str = ""
    sweep: str = ""
    make_reference: bool = False
    num_features: int = 10_000
    out: str = ""
    every: int = 0
    train_samples: int = 10_000

    def __post_init__(self):
        _check_at_least(self, 2, "num_samples", "train_samples")
        # The sixth is the fifth neighbour of the first (density, coverage).
        _check_at_least(self, 6, "num_features")
        _check_at_least(self, 0, "every")
        check_choice("features", self.features, FEATURE_NETWORKS)
        check_choice("resize", self.resize, tuple(RESIZES))
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("save", self.save, ("", "png", "npz"))
        for name in self.asked:
            check_choice("metrics", name, ("all", *METRICS))
        if self.samples and self.sweep:
            raise UserError(
                f"sweep is {self.sweep!r}, expected none where samples is {self.samples!r}: they "
                f"are there"
            )

    @property
    def asked(self) -> tuple[str, ...]:
        """The names in `metrics`."""
        return tuple(name.strip() for name in self.metrics.split(","))


@dataclasses.dataclass(frozen=True)
class PreflightConfig:
    """What is compiled without running it, and what its report assumes.

    Attributes:
      topology: the TPU slice compiled for, as "v5e:16x16" (no TPU is needed); empty for this
        machine's own devices.
      num_slices: such slices joined by the data center's network.
      sampler: whether the sampler is compiled too.
      search: whether to look for the largest batch of each chip that fits, and for the best mesh.
      mfu: share of the chips' peak that the run is assumed to reach, for its hours; 0 for what the
        roofline allows.
    """

    topology: str = ""
    num_slices: int = 1
    sampler: bool = False
    search: bool = False
    mfu: float = 0.4

    def __post_init__(self):
        _check_at_least(self, 1, "num_slices")
        if not 0 <= self.mfu <= 1:
            raise UserError(f"mfu is {self.mfu}, expected a share from 0 to 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run: its length, its batches, and how often it logs, draws and saves (in steps; 0: only
    at the end).

    Attributes:
      microbatches: parts of a batch that go through the network one after another, where memory is
        short: 8 makes the paper's batch of 1024 one of 128 at a time, with the same gradients.
      overlap: what a TPU's compiler is told of communication beside computation: "auto",
        "sparsecore" or "none" (`parallel.compiler`).
      num_images: samples in the grids drawn while training.
      keep_last: newest checkpoints kept.
      keep_every: checkpoints at multiples of this step are kept for good, from that of step 0 on; 0
        for none.
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

    def __post_init__(self):
        _check_at_least(
            self, 1, "steps", "batch_size", "microbatches", "log_every", "num_images", "keep_last"
        )
        _check_at_least(self, 0, "image_every", "save_every", "keep_every")
        check_choice("overlap", self.overlap, OVERLAPS)
        _check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class SampleConfig(SamplerConfig):
    """What is sampled, with the sampler's own fields (solver, method, order, steps, ...) beside it.

    Attributes:
      num_samples: how many.
      labels: "all" for every class in turn, hence equal counts; classes in turn, as in "0,3,7"; or
        "data" for classes as often as `config.data.source` has them.
      prompts: texts in turn, as in "a red bus; two cats", or a .txt file with one a line.
      negative_prompt: a text to be guided away from, in place of the empty one.
      guidance_scale: s of cond + s (cond - uncond); the paper's, one less than the usual w.
      seed: of the noise: sample i is a function of (seed, i).
      batch_size: samples made at a time, at most.
      weights: "ema" or "params", of a run or of a file that holds both.
      step: of the checkpoint; -1 for the newest.
      format: "png", one file a sample, or "npz", one file with `images` uint8 [n, h, w, c] and
        `labels` [n].
      out: folder of this request's samples alone; empty for one in the workdir's samples/ named
        after step, seed and all else that is asked for.
    """

    num_samples: int = 64
    labels: str = "all"
    prompts: str = ""
    negative_prompt: str = ""
    guidance_scale: float = 0.0
    seed: int = 0
    batch_size: int = 64
    weights: str = "ema"
    step: int = -1
    format: str = "png"
    out: str = ""

    def __post_init__(self):
        super().__post_init__()
        if self.guidance == "autoguidance":
            raise UserError(
                "guidance is 'autoguidance', expected 'classifier_free': a second, weaker network, "
                "which the other needs, can be given in Python only, as Sampler(weak_network=...)"
            )
        _check_at_least(self, 1, "num_samples", "batch_size")
        _check_seed(self.seed)
        if self.step < -1:
            raise UserError(
                f"step is {self.step}, expected that of a checkpoint, or -1 for the newest"
            )
        if not math.isfinite(self.guidance_scale):
            raise UserError(f"guidance_scale is {self.guidance_scale}, expected a finite number")
        check_choice("weights", self.weights, ("ema", "params"))
        check_choice("format", self.format, ("png", "npz"))

    def sampler(self) -> SamplerConfig:
        """The sampler's own part."""
        fields = dataclasses.fields(SamplerConfig)
        return SamplerConfig(**{field.name: getattr(self, field.name) for field in fields})


def _check_at_least(section: Any, least: int, *fields: str) -> None:
    for field in fields:
        if getattr(section, field) < least:
            raise UserError(f"{field} is {getattr(section, field)}, expected at least {least}")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}, expected 0 to 2^32 - 1")
