"""Sections of a config that say what the jobs beside training do: sample, evaluate, prepare, ...

Each is a frozen dataclass that checks its own fields; each field is a command line flag.
"""

import dataclasses
import math

from uvit_jax.data.image_sources.crops import CROPS, Size, sides
from uvit_jax.data.image_sources.decoding import MAX_PIXELS, Decoding
from uvit_jax.diffusion.sampler_config import SamplerConfig
from uvit_jax.errors import UserError, check_choice
from uvit_jax.experiment.sections import check_at_least, check_seed
from uvit_jax.metrics.metric_names import FEATURE_NETWORKS, METRICS
from uvit_jax.models.frozen.resize import RESIZES
from uvit_jax.models.uvit_config import DTYPES


@dataclasses.dataclass(frozen=True)
class SampleConfig(SamplerConfig):
    """The job `sample`, with the sampler's own fields (solver, method, order, steps, ...).

    Attributes:
      num_samples: how many.
      labels: "all" for every class in turn, hence equal counts; classes in turn by number or name,
        as in "0,3,7" or "cat, golden retriever"; or "data" for classes as often as
        `config.data.source` has them.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance == "autoguidance":
            raise UserError(
                "guidance is 'autoguidance', expected 'classifier_free': a second, weaker network, "
                "which the other needs, can be given in Python only, as Sampler(weak_network=...)"
            )
        check_at_least(self, 1, "num_samples", "batch_size")
        check_seed(self.seed)
        if self.step < -1:
            raise UserError(
                f"step is {self.step}, expected that of a checkpoint, or -1 for the newest"
            )
        if not math.isfinite(self.guidance_scale):
            raise UserError(f"guidance_scale is {self.guidance_scale}, expected a finite number")
        check_choice("weights", self.weights, ("ema", "params"))
        check_choice("format", self.format, ("png", "npz"))

    def sampler(self) -> SamplerConfig:
        """The sampler's own fields."""
        fields = dataclasses.fields(SamplerConfig)
        return SamplerConfig(**{field.name: getattr(self, field.name) for field in fields})


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The job `evaluate`: metrics of samples, and the reference they are compared with.

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
      dtype: that Inception-v3 computes in; statistics are float64 either way.
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

    def __post_init__(self) -> None:
        check_at_least(self, 2, "num_samples", "train_samples")
        # The sixth is the fifth neighbour of the first (density, coverage).
        check_at_least(self, 6, "num_features")
        check_at_least(self, 0, "every")
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
class PrepareConfig:
    """The job `prepare`: from images to the sharded data set that training reads.

    Attributes:
      source: a folder of images (sub-folders are classes; or flat, with an optional metadata.jsonl,
        .csv or .parquet), "tfds:<name>", or a folder of the official repository's `<i>.npy`
        features.
      split: of a TFDS data set, or the sub-folder of `source` of that name where there is one.
      data_dir: where TFDS keeps its data sets; empty for its own default.
      out: the folder made; empty for `data.source`.
      latents: True stores the latents of `autoencoder`; False stores pixels, as without one.
      image_size: side of the images in pixels, or (height, width); 0 for what the model needs.
      crop: how an image becomes one of that size: "adm", "celeba" (squares alone), "lanczos" or
        "none".
      exif: True to turn images by their EXIF orientation; no published data set was.
      max_pixels: height times width of the largest picture that is decoded; a larger one can't be
        read.
      mirror: True to store latents of each image's mirror image beside its own.
      dtype: of stored latents and of the states of captions.
      batch_size: images encoded at a time, on all devices of a host together.
      images_per_shard: images in each shard; a run that was stopped goes on with the first shard
        not finished.
      threads: that read and crop images.
      on_error: for an image that can't be read: "stop", or "skip" (counted and named in the
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

    def __post_init__(self) -> None:
        check_choice("crop", self.crop, tuple(CROPS))
        check_choice("dtype", self.dtype, ("float16", "bfloat16", "float32"))
        check_choice("on_error", self.on_error, ("stop", "skip"))
        check_at_least(self, 1, "batch_size", "images_per_shard", "threads", "max_pixels")
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

    def decoding(self, channels: int) -> Decoding:
        """The settings by which image files become pixels of this many channels."""
        return Decoding(
            channels,
            self.max_pixels,
            self.exif,
            channels_field="config.model.in_channels",
            max_pixels_field="config.prepare.max_pixels",
        )


@dataclasses.dataclass(frozen=True)
class PreflightConfig:
    """The job `preflight`: compiled without running, and the assumptions of its report.

    Attributes:
      topology: the TPU slice compiled for, as "v5e:16x16" (no TPU is needed); empty for this
        machine's own devices.
      num_slices: such slices joined by the data center's network.
      sampler: True to compile the sampler too.
      search: True to look for the largest batch of each chip that fits, and for the best mesh.
      mfu: share of the chips' peak that the run is assumed to reach, for its hours; 0 for what the
        roofline allows.
    """

    topology: str = ""
    num_slices: int = 1
    sampler: bool = False
    search: bool = False
    mfu: float = 0.4

    def __post_init__(self) -> None:
        check_at_least(self, 1, "num_slices")
        if not 0 <= self.mfu <= 1:
            raise UserError(f"mfu is {self.mfu}, expected a share from 0 to 1")
