"""The card of a model's data, kept in its workdir: sampling needs no copy of the data."""

import dataclasses
import itertools
import json
import logging
import pathlib
from typing import Any

from uvit_jax.data.prepared.manifest import FILE_NAME as MANIFEST
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import TrainingData
from uvit_jax.errors import UserError
from uvit_jax.files import atomic_write
from uvit_jax.fingerprints import sha256_of_file
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.interop.clip_text import TextEncoder
from uvit_jax.models.latents import Normalization
from uvit_jax.models.uvit_config import UViTConfig

LOG = logging.getLogger("uvit_jax")

FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class DataCard:
    """The facts of a data set that sampling needs.

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
        """Raises a UserError for another text encoder than the one of the learned captions."""
        if self.text_encoder_sha256 and encoder.sha256 != self.text_encoder_sha256:
            raise UserError(
                f"config.text_encoder.name is {encoder.name!r} (SHA-256 {encoder.sha256[:12]}), "
                f"but the captions of {self.name!r} were encoded with {self.text_encoder!r} "
                f"({self.text_encoder_sha256[:12]})"
            )

    def check(self, autoencoder: Autoencoder | None) -> None:
        """Raises a UserError where these are pixels, or another autoencoder's latents."""
        if autoencoder is None:
            return
        if self.normalization is None:
            raise UserError(
                f"config.autoencoder.name is {autoencoder.name!r}, expected none: the model "
                f"learned the pixels of {self.name!r}"
            )
        if not self.autoencoder_sha256:
            return
        if autoencoder.sha256 != self.autoencoder_sha256:
            raise UserError(
                f"config.autoencoder.name is {autoencoder.name!r}, whose encoder (SHA-256 "
                f"{autoencoder.sha256[:12]}) is not the one of the latents of {self.name!r}: "
                f"expected {self.autoencoder!r} ({self.autoencoder_sha256[:12]})"
            )

    def check_scale(self, wanted: float | None) -> None:
        """Raises a UserError for a `config.autoencoder.scale` other than the learned latents'."""
        if (
            wanted is None
            or self.normalization is None
            or set(self.normalization.scale) == {wanted}
        ):
            return
        raise UserError(
            f"config.autoencoder.scale is {wanted}, but the latents that the model learned of "
            f"{self.name!r} are scaled by {_in_words(self.normalization)}: leave it at None"
        )

    def check_names(self, source: TrainingData) -> None:
        """Raises a UserError naming the first class that a data set has under another name.

        Names that are unknown on one side are not compared.
        """
        names = known_names(source)
        if not self.class_names or not names:
            return
        for label, (own, other) in enumerate(itertools.zip_longest(self.class_names, names)):
            if own != other:
                raise UserError(
                    f"class {label} of {source.name!r} (config.data.source) is {other!r}, but the "
                    f"model learned {own!r} as class {label} of {self.name!r}: expected data of "
                    "the same classes in the same order"
                )

    def save(self, workdir: pathlib.Path) -> None:
        """Writes the workdir's data.json."""
        with atomic_write(workdir / FILE) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=2).encode() + b"\n")


def read_card(workdir: pathlib.Path) -> DataCard | None:
    """The workdir's card; None where there is none.

    Raises:
      UserError: for a file that is not such a card.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        normalization = values.pop("normalization")
        if normalization:
            normalization = Normalization(
                **{name: tuple(numbers) for name, numbers in normalization.items()}
            )
        return DataCard(
            **{
                **values,
                "class_names": tuple(values["class_names"]),
                "normalization": normalization,
            }
        )
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(
            f"{path} can't be read as the description of a run's data, expected the JSON that "
            f"training wrote there"
        ) from None


def known_names(source: TrainingData) -> tuple[str, ...]:
    """Names of a data set's classes; empty for classes that have only numbers."""
    return (
        source.manifest.class_names
        if isinstance(source, PreparedData)
        else tuple(source.class_names)
    )


def carried_on(learned: DataCard, data: DataCard) -> DataCard:
    """Merges the cards of the data set that weights learned and of the one they go on with.

    Facts that only the former has stay: names of the classes, hashes of the encoders.

    Raises:
      UserError: where the weights would mean something else: pixels and latents, another scale of
        the latents, another encoder of images or captions.
    """
    if (learned.normalization is None) != (data.normalization is None):
        kinds = [
            f"{'pixels' if card.normalization is None else 'latents'} of {card.name!r}"
            for card in (learned, data)
        ]
        raise UserError(
            f"the model learned the {kinds[0]}, expected no {kinds[1]}: take the data of a model "
            f"like it"
        )
    for what, name, sha256 in (
        ("latents", "autoencoder", "autoencoder_sha256"),
        ("captions", "text_encoder", "text_encoder_sha256"),
    ):
        before, now = getattr(learned, sha256), getattr(data, sha256)
        if before and now and before != now:
            raise UserError(
                f"the {what} of {data.name!r} (config.data.source) were encoded with "
                f"{getattr(data, name)!r} (SHA-256 {now[:12]}), expected "
                f"{getattr(learned, name)!r} ({before[:12]}), as those of {learned.name!r} that "
                "the model learned"
            )
        if not now:
            data = dataclasses.replace(data, **{name: getattr(learned, name), sha256: before})
    if learned.normalization is not None and learned.normalization != data.normalization:
        assert data.normalization is not None  # compared above
        raise UserError(
            f"the latents of {data.name!r} (config.data.source) are scaled by "
            f"{_in_words(data.normalization)}, expected {_in_words(learned.normalization)}, as "
            f"those of {learned.name!r} that the model learned"
        )
    return dataclasses.replace(data, class_names=data.class_names or learned.class_names)


def _in_words(normalization: Normalization) -> str:
    """The scale of latents, and their shift where there is one."""
    parts = []
    for values in (normalization.scale, normalization.shift):
        low, high = min(values), max(values)
        parts.append(f"{low:g}" if low == high else f"{low:.4g} to {high:.4g}, channel by channel")
    return parts[0] if parts[1] == "0" else f"{parts[0]} (shifted by {parts[1]})"


def identity(card: DataCard, source: TrainingData | None = None) -> dict[str, Any]:
    """Values that must be equal on all hosts, each of which reads its own copy of the data."""
    values = {f"the data's {name}": value for name, value in dataclasses.asdict(card).items()}
    if source is not None:
        values["the number of examples"] = len(source)
    if isinstance(source, PreparedData):
        digest = sha256_of_file(source.folder / MANIFEST)
        values["the SHA-256 of the data's manifest.json"] = digest
    return values


def card_of_source(
    source: TrainingData,
    autoencoder: Autoencoder | None,
    scale: float | None,
    model: UViTConfig,
    learned: DataCard | None = None,
) -> DataCard:
    """Builds the card of a data set that a model learns.

    Args:
      scale: `config.autoencoder.scale`.
      learned: the card of the run whose weights go on with this data set. Its normalization is
        taken where neither the config nor the data set names a number: statistics of other data
        would make other latents of the same images.

    Raises:
      UserError: where the config names another autoencoder or scale than the one the data were made
        with, or, as `carried_on`, where the weights of that run would mean something else.
    """
    manifest = source.manifest if isinstance(source, PreparedData) else None
    card = _card_of_images(source, autoencoder, scale, learned.normalization if learned else None)
    if manifest is not None:
        card = dataclasses.replace(
            card,
            text_encoder=manifest.text_encoder,
            text_encoder_sha256=manifest.text_encoder_sha256,
        )
    if learned is None:
        return card
    unknown: dict[str, Any] = {}
    if not model.num_classes:
        unknown |= {"class_names": ()}  # Classes and captions mean nothing to a model without them.
    if not model.context_dim:
        unknown |= {"text_encoder": "", "text_encoder_sha256": ""}
    learned = dataclasses.replace(learned, **unknown)
    learned.check_names(source)
    return carried_on(learned, card)


def _card_of_images(
    source: TrainingData,
    autoencoder: Autoencoder | None,
    wanted: float | None,
    learned: Normalization | None,
) -> DataCard:
    names = known_names(source)
    manifest = source.manifest if isinstance(source, PreparedData) else None
    if manifest is None or manifest.kind == "pixels":
        return card_of_config(autoencoder, wanted, source.name, names, learned)
    if wanted is not None and wanted != manifest.scale:
        found = (
            "their own mean and standard deviation" if manifest.scale is None else manifest.scale
        )
        raise UserError(
            f"config.autoencoder.scale is {wanted}, but the latents of {source.name!r} are scaled "
            f"by {found}: leave config.autoencoder.scale at None, or prepare them with this scale"
        )
    if manifest.scale is None:
        own = Normalization.from_statistics(manifest.mean, manifest.std)
        normalization = learned or own
        if normalization != own:
            LOG.info(
                "latents are scaled as the model has learned them, not by the statistics of %s",
                source.name,
            )
    else:
        normalization = Normalization.constant(
            manifest.scale, len(manifest.mean), shift=manifest.shift
        )
    card = DataCard(
        source.name, names, normalization, manifest.autoencoder, manifest.autoencoder_sha256
    )
    card.check(autoencoder)
    return card


def card_of_config(
    autoencoder: Autoencoder | None,
    scale: float | None,
    name: str = "",
    class_names: tuple[str, ...] = (),
    learned: Normalization | None = None,
) -> DataCard:
    """Builds the card of a model of pixels, or of one whose images this autoencoder encodes.

    Args:
      scale: `config.autoencoder.scale`.
      learned: the normalization of the latents that the model learned, taken where scale is None.

    Raises:
      UserError: for an autoencoder that has no scale of its own where the config gives none either.
    """
    if autoencoder is None:
        return DataCard(name, class_names)
    if scale is None and learned is not None:
        return DataCard(name, class_names, learned, autoencoder.name, autoencoder.sha256)
    scale = autoencoder.scale if scale is None else scale
    if scale is None:
        raise UserError(
            f"config.autoencoder.scale is None, and {autoencoder.name!r} has no scale of its own: "
            "expected a number, or latents made by the job prepare, which know their mean and "
            "standard deviation"
        )
    normalization = Normalization.constant(
        scale, autoencoder.latent_channels, shift=autoencoder.shift
    )
    return DataCard(name, class_names, normalization, autoencoder.name, autoencoder.sha256)
