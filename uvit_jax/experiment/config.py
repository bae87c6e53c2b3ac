"""From a config file to a checked experiment: its sections, their defaults, and their checks."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from uvit_jax.checked_fields import typed, words
from uvit_jax.diffusion.start import check_carries
from uvit_jax.errors import UserError
from uvit_jax.experiment.config_file import check_known, read_config
from uvit_jax.experiment.field_text import from_text
from uvit_jax.experiment.job_sections import (
    EvaluateConfig,
    PreflightConfig,
    PrepareConfig,
    SampleConfig,
)
from uvit_jax.experiment.paths import with_local_paths
from uvit_jax.experiment.sections import (
    AutoencoderSection,
    DataConfig,
    DiffusionConfig,
    TextEncoderSection,
    TrainConfig,
)
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.parallel.distributed import DistributedConfig
from uvit_jax.parallel.mesh import MeshConfig
from uvit_jax.training.ema_config import EMAConfig
from uvit_jax.training.optimizer_config import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole config, checked: each section a frozen dataclass.

    `resolve` and `load_experiment` make one; `default_config` has the same fields to be set.

    Attributes:
      model: the network.
      diffusion: noise and prediction.
      autoencoder: between images and latents, if any.
      text_encoder: of captions and prompts, if any.
      init_from: weights to start from or to sample with: an official `.pth` or `.safetensors` (or a
        folder with one, or with a step of the official code), or the workdir of another run. Where
        it holds both, EMA weights are taken, or what `sample.weights` says; empty for none.
      data: what is trained on.
      train: length, batches and intervals of the run.
      optimizer: AdamW and its rate.
      ema: the average of the weights.
      mesh: how devices are used.
      distributed: how hosts find each other.
      sample: the job `sample`.
      evaluate: the job `evaluate`.
      prepare: the job `prepare`.
      preflight: the job `preflight`.

    Raises:
      UserError: by its sections, for a value that is not one of theirs.
    """

    model: UViTConfig = dataclasses.field(default_factory=UViTConfig)
    diffusion: DiffusionConfig = dataclasses.field(default_factory=DiffusionConfig)
    autoencoder: AutoencoderSection = dataclasses.field(default_factory=AutoencoderSection)
    text_encoder: TextEncoderSection = dataclasses.field(default_factory=TextEncoderSection)
    init_from: str = ""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    ema: EMAConfig = dataclasses.field(default_factory=EMAConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    prepare: PrepareConfig = dataclasses.field(default_factory=PrepareConfig)
    preflight: PreflightConfig = dataclasses.field(default_factory=PreflightConfig)

    @property
    def null_label(self) -> int | None:
        """The empty label's id: the table's last row where training drops labels."""
        return (
            self.model.num_classes - 1
            if self.model.num_classes and self.diffusion.p_uncond
            else None
        )

    @property
    def num_real_classes(self) -> int:
        """Classes that can be asked for."""
        return self.model.num_classes - (self.null_label is not None)


def default_config() -> ml_collections.ConfigDict:
    """Every field of every section at its default, for a config file to start from."""
    # `resolve` checks types: ConfigDict has no union of types, which image_size needs.
    return ml_collections.ConfigDict(dataclasses.asdict(Experiment()), type_safe=False)


def field_names() -> list[str]:
    """The dotted names of all fields, as "train.steps"."""
    hints = typing.get_type_hints(Experiment)
    return [
        f"{name}.{field}" if field else name
        for name, hint in hints.items()
        for field in (typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else [""])
    ]


def set_fields(config: ml_collections.ConfigDict, fields: Mapping[str, str | None]) -> None:
    """Sets fields of a config, named as in "train.steps", to the values of their texts.

    fields: None, a flag without a value, is True.

    Raises:
      UserError: for an unknown field, or a text that is not a value of the field's type.
    """
    for name, text in fields.items():
        hint: Any = Experiment
        where = "config"
        for part in name.split("."):
            if not dataclasses.is_dataclass(hint):
                raise UserError(f"config.{name} is not a field, expected --{where}=VALUE")
            hints = typing.get_type_hints(hint)
            check_known(where, [part], hints)
            where, hint = f"{where}.{part}", hints[part]
        if dataclasses.is_dataclass(hint):
            raise UserError(
                f"config.{name} is a section, expected a field of it as --config.{name}.FIELD=VALUE"
            )
        section, _, field = name.rpartition(".")
        with config.unlocked():
            if section and section not in config:
                config[section] = ml_collections.ConfigDict()
            within = config[section] if section else config
            if not isinstance(within, ml_collections.ConfigDict):
                raise UserError(
                    f"config.{section} is {within!r}, expected a section with fields of its own"
                )
            within[field] = _from_text(name, text, hint)


def _from_text(name: str, text: str | None, hint: Any) -> Any:
    if text is None and hint is not bool:
        raise UserError(
            f"config.{name} has no value, expected --config.{name}=VALUE ({words(hint)})"
        )
    try:
        return from_text("true" if text is None else text, hint)
    except ValueError:
        raise UserError(f"config.{name} is {text!r}, expected {words(hint)}") from None


def load_experiment(name: str, overrides: Mapping[str, str | None] | None = None) -> Experiment:
    """The checked experiment of a config file.

    Args:
      name: "configs/x.py" or "configs/x.py:variant".
      overrides: values of fields by their dotted names, as text: {"train.steps": "1000"}.

    Raises:
      UserError: for a fault of the file, or as `set_fields` and `resolve`.

    >>> experiment = load_experiment("configs/digits.py", {"model.depth": "7"})
    >>> experiment.model.depth, experiment.sample.steps
    (7, 25)
    """
    config = read_config(name)
    set_fields(config, overrides or {})
    return resolve(config)


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """Splits settings like "section.field=value" into fields and their values as text.

    Raises:
      UserError: for a setting without a value.
    """
    for setting in settings:
        if "=" not in setting:
            raise UserError(f"--set has {setting!r}, expected section.field=value")
    return dict(setting.split("=", 1) for setting in settings)


def resolve(config: ml_collections.ConfigDict) -> Experiment:
    """The checked experiment of a config.

    Raises:
      UserError: naming the field, for one that is unknown or has a wrong value.
    """
    hints = typing.get_type_hints(Experiment)
    values = config.to_dict()
    check_known("config", values, hints)
    made: dict[str, Any] = {}
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            fields = values.get(name, {})
            if not isinstance(fields, dict):
                raise UserError(
                    f"config.{name} is {fields!r}, expected a section with fields of its own"
                )
            made[name] = _section(name, hint, fields)
        elif name in values:
            made[name] = _checked(f"config.{name}", values[name], hint)
    experiment = with_local_paths(Experiment(**made))
    _check_null_condition(experiment.model, experiment.diffusion, experiment.sample)
    _check_start(experiment.diffusion, experiment.sample)
    _check_texts(experiment.model, experiment.sample)
    return experiment


def _check_null_condition(
    model: UViTConfig, diffusion: DiffusionConfig, sample: SampleConfig
) -> None:
    """Raises a UserError for dropped conditions or guidance that the model has no use for."""
    if diffusion.p_uncond and not (model.num_classes or model.context_dim):
        raise UserError(
            f"config.diffusion.p_uncond is {diffusion.p_uncond}, expected 0 for an "
            f"unconditional model"
        )
    if model.num_classes == 1 and diffusion.p_uncond:
        raise UserError(
            "config.model.num_classes is 1, expected at least 2: with p_uncond above 0 one is the "
            "empty label"
        )
    if sample.guidance_scale and not diffusion.p_uncond:
        raise UserError(
            f"config.sample.guidance_scale is {sample.guidance_scale}, expected 0: with "
            "config.diffusion.p_uncond = 0 the model knows no empty condition to guide away from"
        )


def _check_start(diffusion: DiffusionConfig, sample: SampleConfig) -> None:
    """Raises a UserError for a start of sampling at which the prediction says nothing."""
    try:
        check_carries(diffusion.make_schedule(), sample.t_start, diffusion.prediction)
    except UserError as error:
        raise UserError(f"config.sample.{error} (config.diffusion.prediction is 'noise')") from None


def _check_texts(model: UViTConfig, sample: SampleConfig) -> None:
    """Raises a UserError for texts without a model of text, or labels with one."""
    if (sample.prompts or sample.negative_prompt) and not model.context_dim:
        field, value = (
            ("prompts", sample.prompts)
            if sample.prompts
            else ("negative_prompt", sample.negative_prompt)
        )
        raise UserError(
            f"config.sample.{field} is {value!r}, expected none for a model without text"
        )
    if model.context_dim and sample.labels.strip() not in ("", "all"):
        raise UserError(
            f"config.sample.labels is {sample.labels!r}, expected 'all' for a model of text, which "
            "config.sample.prompts asks for samples"
        )
    if sample.negative_prompt and not sample.guidance_scale:
        raise UserError(
            f"config.sample.negative_prompt is {sample.negative_prompt!r}, but "
            "config.sample.guidance_scale is 0: expected a scale to be guided away from it with"
        )


def _section(name: str, section: Any, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(section)
    check_known(f"config.{name}", values, hints)
    values = {
        field: _checked(f"config.{name}.{field}", value, hints[field])
        for field, value in values.items()
    }
    try:
        return section(**values)
    except UserError as error:
        raise UserError(f"config.{name}.{error}") from None


def _checked(field: str, value: Any, hint: Any) -> Any:
    try:
        return typed(value, hint, whole_floats=True)
    except TypeError:
        shown = tuple(value) if isinstance(value, list) else value
        raise UserError(f"{field} is {shown!r}, expected {words(hint)}") from None
