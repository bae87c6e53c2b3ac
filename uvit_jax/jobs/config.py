"""From a config file to checked dataclasses: the sections, their fields and defaults, and what must fit together."""

import dataclasses
import difflib
import json
import math
import pathlib
import types
import typing
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from uvit_jax.data.sources import SOURCES, Source
from uvit_jax.diffusion.losses import WEIGHTINGS
from uvit_jax.diffusion.predictions import PREDICTIONS
from uvit_jax.diffusion.sampler import SamplerConfig
from uvit_jax.diffusion.schedules import RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
from uvit_jax.errors import UserError
from uvit_jax.models.uvit import UViTConfig, check_labels
from uvit_jax.models.uvit_config import check_choice
from uvit_jax.parallel.mesh import MeshConfig
from uvit_jax.training.ema import EMAConfig
from uvit_jax.training.optimizer import OptimizerConfig

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "vp_linear": VPLinear,
    "vp_cosine": VPCosine,
    "stable_diffusion": VPDiscrete.stable_diffusion,
    "rectified_flow": RectifiedFlow,
}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; a whole number may stand for a float."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _check_at_least(section: Any, least: int, *fields: str) -> None:
    for field in fields:
        if getattr(section, field) < least:
            raise UserError(f"{field} is {getattr(section, field)}, expected at least {least}")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}, expected 0 to 2^32 - 1")


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The noise and what the network predicts.

    Attributes:
      schedule: "vp_linear", "vp_cosine" or "rectified_flow" (continuous), or "stable_diffusion" (discrete, 1000 betas).
      prediction: "noise", "x0", "v" or "flow".
      weighting: of the loss over time, "none" or "min_snr".
      p_uncond: share of training examples whose condition is dropped; above 0 the label table's last row is the
        empty label.
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
class DataConfig:
    """Where examples come from: a built-in source, and how many batches are made ready ahead."""

    source: str = "digits"
    prefetch: int = 2

    def __post_init__(self):
        check_choice("source", self.source, tuple(SOURCES))
        _check_at_least(self, 1, "prefetch")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run: its length, its batches, and how often it logs, draws and saves (in steps; 0: only at the end).

    Attributes:
      num_images: samples in the grids drawn while training.
      keep_last: newest checkpoints kept.
      keep_every: checkpoints at multiples of this step are kept for good; 0 for none.
    """

    steps: int = 500_000
    batch_size: int = 128
    seed: int = 0
    log_every: int = 100
    image_every: int = 5000
    save_every: int = 5000
    num_images: int = 64
    keep_last: int = 2
    keep_every: int = 0

    def __post_init__(self):
        _check_at_least(self, 1, "steps", "batch_size", "log_every", "num_images", "keep_last")
        _check_at_least(self, 0, "image_every", "save_every", "keep_every")
        _check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class SampleConfig(SamplerConfig):
    """What is sampled, with the sampler's own fields (solver, method, order, steps, ...) beside it.

    Attributes:
      num_samples: how many.
      labels: "all" for every class in turn, hence equal counts; or classes in turn, as in "0,3,7".
      guidance_scale: s of cond + s (cond - uncond); the paper's, one less than the usual w.
      seed: of the noise: sample i is a function of (seed, i).
      batch_size: samples made at a time.
      weights: "ema" or "params".
      step: of the checkpoint; -1 for the newest.
      format: "png", one file a sample, or "npz", one file with `images` uint8 [n, h, w, c] and `labels` [n].
      out: folder; empty for one in the workdir's samples/ named after step and seed.
    """

    num_samples: int = 64
    labels: str = "all"
    guidance_scale: float = 0.0
    seed: int = 0
    batch_size: int = 64
    weights: str = "ema"
    step: int = -1
    format: str = "png"
    out: str = ""

    def __post_init__(self):
        super().__post_init__()
        _check_at_least(self, 1, "num_samples", "batch_size")
        _check_seed(self.seed)
        if not math.isfinite(self.guidance_scale):
            raise UserError(f"guidance_scale is {self.guidance_scale}, expected a finite number")
        check_choice("weights", self.weights, ("ema", "params"))
        check_choice("format", self.format, ("png", "npz"))

    def sampler(self) -> SamplerConfig:
        """The sampler's own part."""
        fields = dataclasses.fields(SamplerConfig)
        return SamplerConfig(**{field.name: getattr(self, field.name) for field in fields})


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole config, checked: each section a frozen dataclass."""

    model: UViTConfig = dataclasses.field(default_factory=UViTConfig)
    diffusion: DiffusionConfig = dataclasses.field(default_factory=DiffusionConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    ema: EMAConfig = dataclasses.field(default_factory=EMAConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)

    @property
    def null_label(self) -> int | None:
        """The empty label's id: the table's last row where training drops labels."""
        return self.model.num_classes - 1 if self.model.num_classes and self.diffusion.p_uncond else None

    @property
    def num_real_classes(self) -> int:
        """Classes that can be asked for."""
        return self.model.num_classes - (self.null_label is not None)


# How a model is computed, not what it is: these may differ between a checkpoint and the config that reads it.
_HOW_FIELDS = ("dtype", "remat", "scan_blocks", "attention")


def default_config() -> ml_collections.ConfigDict:
    """Every field of every section at its default: what a config file starts from and a flag can override."""
    # Types are checked by `resolve`: ConfigDict knows no field of two, as image_size is.
    return ml_collections.ConfigDict(dataclasses.asdict(Experiment()), type_safe=False)


def resolve(config: ml_collections.ConfigDict) -> Experiment:
    """The checked experiment of a config.

    Raises:
      UserError: naming the field, for one that is unknown or whose value can't be.
    """
    sections: dict[str, Any] = {section.name: section.type for section in dataclasses.fields(Experiment)}
    values = config.to_dict()
    _check_known("config", values, sections)
    made: dict[str, Any] = {}
    for name, section in sections.items():
        fields = values.get(name, {})
        hints = typing.get_type_hints(section)
        _check_known(f"config.{name}", fields, hints)
        fields = {field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()}
        for field, value in fields.items():
            if not _fits(value, hints[field]):
                expected = getattr(hints[field], "__name__", hints[field])
                raise UserError(f"config.{name}.{field} is {value!r}, expected {expected}")
        try:
            made[name] = section(**fields)
        except UserError as error:
            raise UserError(f"config.{name}.{error}") from None
    experiment = Experiment(**made)
    if experiment.diffusion.p_uncond and not (experiment.model.num_classes or experiment.model.context_dim):
        raise UserError(
            f"config.diffusion.p_uncond is {experiment.diffusion.p_uncond}, expected 0 for an unconditional model"
        )
    if experiment.model.num_classes == 1 and experiment.diffusion.p_uncond:
        raise UserError(
            "config.model.num_classes is 1, expected at least 2: with p_uncond above 0 one is the empty label"
        )
    if experiment.sample.guidance_scale and not experiment.diffusion.p_uncond:
        raise UserError(
            f"config.sample.guidance_scale is {experiment.sample.guidance_scale}, expected 0: with "
            "config.diffusion.p_uncond = 0 the model knows no empty condition to guide away from"
        )
    return experiment


def check_source(experiment: Experiment, source: Source) -> None:
    """Raises a UserError where the model's input or labels are not the data's."""
    model = experiment.model
    if model.context_dim:
        raise UserError(f"config.model.context_dim is {model.context_dim}, but {source.name!r} has no text")
    if source.sample_shape != model.sample_shape:
        raise UserError(
            f"config.model makes images of shape {model.sample_shape}, but {source.name!r} has {source.sample_shape} "
            "(image_size and in_channels must fit config.data.source)"
        )
    if model.num_classes and experiment.num_real_classes != source.num_classes:
        extra = ", and one more for the empty label as p_uncond is above 0" if experiment.diffusion.p_uncond else ""
        raise UserError(
            f"config.model.num_classes is {model.num_classes}, but {source.name!r} has "
            f"{source.num_classes} classes{extra}"
        )


def check_mesh(experiment: Experiment, sizes: tuple[int, int, int]) -> None:
    """Raises a UserError where a batch or the heads can't be split over the mesh."""
    data, fsdp, tensor = sizes
    for field, value in (
        ("train.batch_size", experiment.train.batch_size),
        ("sample.batch_size", experiment.sample.batch_size),
    ):
        if value % (data * fsdp):
            raise UserError(f"config.{field} is {value}, expected a multiple of mesh.data * mesh.fsdp = {data * fsdp}")
    if experiment.model.num_heads % tensor:
        raise UserError(
            f"config.model.num_heads is {experiment.model.num_heads}, expected a multiple of mesh.tensor = {tensor}"
        )


def sample_labels(experiment: Experiment, count: int) -> np.ndarray | None:
    """Labels `[count]` int32 as `sample.labels` says, classes in turn; None for an unconditional model.

    Raises:
      UserError: for what is no list of classes, or a class outside the table.
    """
    text, classes = experiment.sample.labels.strip(), experiment.num_real_classes
    if not classes:
        if text not in ("", "all"):
            raise UserError(f"config.sample.labels is {text!r}, expected 'all' for a model without labels")
        return None
    if text == "all":
        asked = np.arange(classes)
    else:
        try:
            asked = np.array([int(part) for part in text.split(",")])
        except ValueError:
            raise UserError(f"config.sample.labels is {text!r}, expected 'all' or classes as in '0,3,7'") from None
        try:
            check_labels(asked, classes)
        except UserError as error:
            raise UserError(f"config.sample.labels: {error}") from None
    return np.resize(asked, count).astype(np.int32)


def open_workdir(workdir: pathlib.Path) -> None:
    """Makes the folder.

    Raises:
      UserError: if it can't be made or written to.
    """
    probe = workdir / ".write_test"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"workdir {workdir} can't be written to ({error.strerror}), expected a folder of yours"
        ) from None


def saved_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The config that the workdir's run was started with; None where there is none.

    Raises:
      UserError: for a file that is no such config.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
    except (ValueError, OSError):
        saved = None
    if not isinstance(saved, dict) or not all(isinstance(section, dict) for section in saved.values()):
        raise UserError(f"{path} can't be read as the config of a run, expected the JSON that training wrote there")
    return saved


def changes(experiment: Experiment, saved: dict[str, Any]) -> list[str]:
    """What the config says otherwise than a saved one, a line for each field."""
    now = json.loads(json.dumps(dataclasses.asdict(experiment)))
    return [
        f"config.{section}.{field}: {saved[section][field]} before, {value} now"
        for section, fields in now.items()
        for field, value in fields.items()
        if section in saved and saved[section].get(field, value) != value
    ]


def check_architecture(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Raises a UserError naming the first field in which the workdir's model is another than the config's."""
    saved = (saved_config(workdir) or {}).get("model", {})
    for field, value in dataclasses.asdict(experiment.model).items():
        found = saved.get(field, value)
        found = tuple(found) if isinstance(found, list) else found
        if field not in _HOW_FIELDS and found != value:
            raise UserError(
                f"{workdir} holds a model with {field} = {found!r}, but config.model.{field} is {value!r}: "
                "take another --workdir or the config it was trained with"
            )


def _check_known(where: str, found: dict[str, Any], known: Any) -> None:
    unknown = [name for name in found if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else f", expected one of {', '.join(sorted(known))}"
        raise UserError(f"{where} has no field {unknown[0]!r}{hint}")
