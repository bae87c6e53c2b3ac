"""What sampling must know of the data a model was trained on: noted in the workdir, so the data need not be there."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from uvit_jax.data.manifest import FILE_NAME as MANIFEST
from uvit_jax.data.records import RecordSource
from uvit_jax.data.sources import Source
from uvit_jax.errors import UserError
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.interop.clip import TextEncoder
from uvit_jax.jobs.config import Experiment
from uvit_jax.models.latents import Normalization
from uvit_jax.telemetry.atomic import atomic_write

FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class DataCard:
    """A data set as a model's pictures need it.

    Attributes:
      name: of the data set.
      class_names: of the labels; empty where there are none or they are not known.
      normalization: how the network's latents are scaled; None for a model of pixels.
      autoencoder: name of the autoencoder whose latents they are.
      autoencoder_sha256: of its encoder; empty where it was not at hand.
      text_encoder: name of the encoder of its captions; empty without.
      text_encoder_sha256: of its weights.
    """

    name: str
    class_names: tuple[str, ...] = ()
    normalization: Normalization | None = None
    autoencoder: str = ""
    autoencoder_sha256: str = ""
    text_encoder: str = ""
    text_encoder_sha256: str = ""

    def check_text(self, encoder: TextEncoder) -> None:
        """Raises a UserError where a model learned from another encoder's states of its captions."""
        if self.text_encoder_sha256 and encoder.sha256 != self.text_encoder_sha256:
            raise UserError(
                f"config.text_encoder.name is {encoder.name!r} (SHA-256 {encoder.sha256[:12]}), but the captions of "
                f"{self.name!r} were encoded with {self.text_encoder!r} ({self.text_encoder_sha256[:12]})"
            )

    def check(self, autoencoder: Autoencoder | None) -> None:
        """Raises a UserError where these are another autoencoder's latents."""
        if autoencoder is None or self.normalization is None or not self.autoencoder_sha256:
            return
        if autoencoder.sha256 != self.autoencoder_sha256:
            raise UserError(
                f"config.autoencoder.name is {autoencoder.name!r}, whose encoder (SHA-256 {autoencoder.sha256[:12]}) "
                f"is not the one of the latents of {self.name!r}: expected {self.autoencoder!r} "
                f"({self.autoencoder_sha256[:12]})"
            )

    def check_scale(self, wanted: float | None) -> None:
        """Raises a UserError where `config.autoencoder.scale` is given and is not the one of the latents learned."""
        if wanted is None or self.normalization is None or set(self.normalization.scale) == {wanted}:
            return
        found = sorted(set(self.normalization.scale))
        scales = f"{found[0]:g}" if len(found) == 1 else f"{found[0]:.4g} to {found[-1]:.4g}, channel by channel"
        raise UserError(
            f"config.autoencoder.scale is {wanted}, but the latents that the model learned of {self.name!r} are scaled "
            f"by {scales}: leave it at None"
        )

    def save(self, workdir: pathlib.Path) -> None:
        """Writes the workdir's data.json."""
        with atomic_write(workdir / FILE) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=2).encode() + b"\n")


def read_card(workdir: pathlib.Path) -> DataCard | None:
    """The workdir's card; None where there is none.

    Raises:
      UserError: for a file that is no such card.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        normalization = values.pop("normalization")
        if normalization:
            normalization = Normalization(**{name: tuple(numbers) for name, numbers in normalization.items()})
        return DataCard(**{**values, "class_names": tuple(values["class_names"]), "normalization": normalization})
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(
            f"{path} can't be read as the description of a run's data, expected the JSON that training wrote there"
        ) from None


def identity(card: DataCard, source: Source | None = None) -> dict[str, Any]:
    """What hosts that each read their own copy of the data and of other models' weights must find the same."""
    values = {f"the data's {name}": value for name, value in dataclasses.asdict(card).items()}
    if source is not None:
        values["the number of examples"] = len(source)
    if isinstance(source, RecordSource):
        digest = hashlib.sha256((source.folder / MANIFEST).read_bytes()).hexdigest()
        values["the SHA-256 of the data's manifest.json"] = digest
    return values


def card_of_source(experiment: Experiment, source: Source, autoencoder: Autoencoder | None) -> DataCard:
    """The card of a data set as this experiment reads it.

    Raises:
      UserError: where the config names another autoencoder or scale than the one the data were made with.
    """
    names = tuple(source.class_names)
    manifest = source.manifest if isinstance(source, RecordSource) else None
    card = _card_of_images(experiment, source, autoencoder, names)
    if manifest is None:
        return card
    return dataclasses.replace(
        card, text_encoder=manifest.text_encoder, text_encoder_sha256=manifest.text_encoder_sha256
    )


def _card_of_images(
    experiment: Experiment, source: Source, autoencoder: Autoencoder | None, names: tuple[str, ...]
) -> DataCard:
    manifest = source.manifest if isinstance(source, RecordSource) else None
    if manifest is None or manifest.kind == "pixels":
        return card_of_config(experiment, autoencoder, source.name, names)
    wanted = experiment.autoencoder.scale
    if wanted is not None and wanted != manifest.scale:
        found = "their own mean and standard deviation" if manifest.scale is None else manifest.scale
        raise UserError(
            f"config.autoencoder.scale is {wanted}, but the latents of {source.name!r} are scaled by {found}: leave "
            "config.autoencoder.scale at None, or prepare them with this scale"
        )
    if manifest.scale is None:
        # A channel that never varies is brought to mean 0 alone.
        normalization = Normalization.from_statistics(manifest.mean, [std or 1.0 for std in manifest.std])
    else:
        normalization = Normalization.constant(manifest.scale, len(manifest.mean), shift=manifest.shift)
    card = DataCard(source.name, names, normalization, manifest.autoencoder, manifest.autoencoder_sha256)
    card.check(autoencoder)
    return card


def card_of_config(
    experiment: Experiment, autoencoder: Autoencoder | None, name: str = "", class_names: tuple[str, ...] = ()
) -> DataCard:
    """The card of a model of pixels, or of one whose images this autoencoder encodes and decodes.

    Raises:
      UserError: for an autoencoder that has no scale of its own where the config gives none either.
    """
    if autoencoder is None:
        return DataCard(name, class_names)
    scale = autoencoder.scale if experiment.autoencoder.scale is None else experiment.autoencoder.scale
    if scale is None:
        raise UserError(
            f"config.autoencoder.scale is None, and {autoencoder.name!r} has no scale of its own: expected a number, "
            "or latents made by the job prepare, which know their mean and standard deviation"
        )
    normalization = Normalization.constant(scale, autoencoder.latent_channels, shift=autoencoder.shift)
    return DataCard(name, class_names, normalization, autoencoder.name, autoencoder.sha256)
