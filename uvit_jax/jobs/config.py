"""From a config file to a checked experiment: its sections, their defaults, and what must fit together."""

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from uvit_jax.errors import UserError
from uvit_jax.jobs.config_file import check_flags, check_known, read_config
from uvit_jax.jobs.paths import with_local_paths
from uvit_jax.jobs.sections import (
    AutoencoderSection,
    DataConfig,
    DiffusionConfig,
    EvaluateConfig,
    PreflightConfig,
    PrepareConfig,
    SampleConfig,
    TextEncoderSection,
    TrainConfig,
)
from uvit_jax.models.uvit import UViTConfig
from uvit_jax.parallel.hosts import DistributedConfig
from uvit_jax.parallel.mesh import MeshConfig
from uvit_jax.training.ema import EMAConfig
from uvit_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole config, checked: each section a frozen dataclass.

    Attributes:
      init_from: weights to start from or to sample with: an official `.pth` or `.safetensors`, or the workdir of
        another run, whose EMA weights are taken; empty for none.
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
        return self.model.num_classes - 1 if self.model.num_classes and self.diffusion.p_uncond else None

    @property
    def num_real_classes(self) -> int:
        """Classes that can be asked for."""
        return self.model.num_classes - (self.null_label is not None)


def default_config() -> ml_collections.ConfigDict:
    """Every field of every section at its default: what a config file starts from and a flag can override."""
    # Types are checked by `resolve`: ConfigDict knows no field of two, as image_size is.
    config = ml_collections.ConfigDict(dataclasses.asdict(Experiment()), type_safe=False)
    # A flag for a field that is None needs to be told its type.
    config.autoencoder.scale = ml_collections.config_dict.placeholder(float)
    return config


def load_experiment(name: str, overrides: Mapping[str, str] | None = None) -> Experiment:
    """The checked experiment of a config file, named as on the command line: "configs/x.py" or "configs/x.py:variant".

    overrides: values of fields by their dotted names, as text.

    Raises:
      UserError: for a fault of the file, a field that isn't there or whose value can't be, or as `resolve`.
    """
    config = read_config(name)
    for field, text in (overrides or {}).items():
        check_flags(config, [field])
        section, _, last = field.rpartition(".")
        within = config[section] if section else config
        try:
            within[last] = text if isinstance(within[last], str) else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise UserError(f"config.{field} is {text!r}, expected a value as {within[last]!r}") from None
    return resolve(config)


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """Fields and their values as text, of "section.field=value".

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
      UserError: naming the field, for one that is unknown or whose value can't be.
    """
    hints = typing.get_type_hints(Experiment)
    values = config.to_dict()
    check_known("config", values, hints)
    made: dict[str, Any] = {}
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            fields = values.get(name, {})
            if not isinstance(fields, dict):
                raise UserError(f"config.{name} is {fields!r}, expected a section with fields of its own")
            made[name] = _section(name, hint, fields)
        elif name in values:
            made[name] = _checked(f"config.{name}", values[name], hint)
    experiment = with_local_paths(Experiment(**made))
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
    sample = experiment.sample
    if (sample.prompts or sample.negative_prompt) and not experiment.model.context_dim:
        field, value = ("prompts", sample.prompts) if sample.prompts else ("negative_prompt", sample.negative_prompt)
        raise UserError(f"config.sample.{field} is {value!r}, expected none for a model without text")
    if experiment.model.context_dim and sample.labels.strip() not in ("", "all"):
        raise UserError(
            f"config.sample.labels is {sample.labels!r}, expected 'all' for a model of text, which "
            "config.sample.prompts asks for samples"
        )
    if sample.negative_prompt and not sample.guidance_scale:
        raise UserError(
            f"config.sample.negative_prompt is {sample.negative_prompt!r}, but config.sample.guidance_scale is 0: "
            "expected a scale to be guided away from it with"
        )
    return experiment


def _section(name: str, section: Any, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(section)
    check_known(f"config.{name}", values, hints)
    values = {field: _checked(f"config.{name}.{field}", value, hints[field]) for field, value in values.items()}
    try:
        return section(**values)
    except UserError as error:
        raise UserError(f"config.{name}.{error}") from None


def _checked(field: str, value: Any, hint: Any) -> Any:
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        raise UserError(f"{field} is {value!r}, expected {_words(hint)}")
    return value


def _words(hint: Any) -> str:
    """A field's type in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, parts))
    if origin is tuple:
        return "two numbers"  # there are no other tuples
    return "None" if hint is types.NoneType else hint.__name__


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
