"""TFDS data sets as original images, read from ArrayRecord without TensorFlow."""

import dataclasses
import logging
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from uvit_jax.data.image_sources.decoding import Decoding, decode
from uvit_jax.data.image_sources.image_source import SourceImage
from uvit_jax.errors import UserError
from uvit_jax.extras import import_extra

LOG = logging.getLogger("uvit_jax")

PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True)
class TfdsImages:
    """One split of a TFDS data set.

    Attributes:
      name: "tfds:" and what TFDS calls it.
      split: as TFDS writes it ("train", "train[:10%]").
      class_names: one for each class; () without labels.
      examples: TFDS's data source, whose images are left undecoded: this package decodes them as it
        does files.
      decoding: how its images become pixels.
    """

    name: str
    split: str
    class_names: Sequence[str]
    examples: Any
    decoding: Decoding

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> SourceImage:
        """The image at this index.

        Raises:
          CorruptImage: for bytes that are not a whole image.
          UserError: for a record that can't be read.
        """
        example, name = self._example(index), f"{self.split}[{index}]"
        image = decode(bytes(example["image"]), f"{name} of {self.name}", self.decoding)
        return SourceImage(image, self._label(example), (), name)

    def label(self, index: int) -> int:
        """The label of the image at this index, which is not decoded; -1 where it is not known.

        Raises:
          UserError: for a record that can't be read.
        """
        return self._label(self._example(index))

    def listing(self) -> list[Any]:
        """The version, and the records that the split takes of each file."""
        info = self.examples.dataset_info
        parts = info.splits[self.split].file_instructions
        taken = [[part.basename(), part.skip, part.take] for part in parts]
        return [info.full_name, taken, list(self.class_names)]

    def _label(self, example: Any) -> int:
        return int(example["label"]) if self.class_names else -1

    def _example(self, index: int) -> Any:
        name = f"{self.split}[{index}]"
        if not 0 <= index < len(self):
            raise IndexError(f"{name} of {len(self)} images")
        try:
            example = self.examples[index]
        except Exception as error:  # Of whatever type the reader of the file format raises.
            raise UserError(f"{name} of {self.name} can't be read ({_first_line(error)})") from None
        if example["image"] is None:  # What a file of records that ends too early comes to.
            raise UserError(
                f"{name} of {self.name} can't be read (it is not in its file), expected a whole "
                f"build"
            )
        return example


def open_tfds(
    source: str, split: str, data_dir: str, decoding: Decoding | None = None
) -> TfdsImages:
    """The split of a TFDS data set with a feature `image` and, for labels, a class label `label`.

    A data set that isn't on disk yet is downloaded and written as ArrayRecord, for which some data
    sets' code needs TensorFlow (CIFAR-10's, MNIST's and ImageNet's do, CelebA's doesn't); reading
    never does.

    Args:
      source: "tfds:cifar10", "tfds:<name>/<config>:<version>".
      split: as TFDS writes it.
      data_dir: where TFDS keeps its data sets; "" for its own default (TFDS_DATA_DIR or
        ~/tensorflow_datasets).
      decoding: how its images become pixels; None for the channels that its feature has.

    Raises:
      UserError: where TFDS isn't installed, knows no such data set or split, or can't prepare it
        here; for a data set prepared as TFRecord, and for one without images of 8 bits.
    """
    tfds = import_extra("tensorflow_datasets", "tfds", f"source is {source!r}")
    builder = _prepared(tfds, source, data_dir)
    features = builder.info.features
    known = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = known.get("image"), known.get("label")
    if (
        not isinstance(image, tfds.features.Image)
        or image.shape[-1] not in (1, 3, 4)
        or image.np_dtype != np.uint8
    ):
        raise UserError(
            f"{source} has the features {_one_line(features)}, expected an 'image' of 8 bits: "
            f"grey, RGB, RGBA"
        )
    class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
    if others := sorted(known.keys() - {"image", *(["label"] if class_names else [])}):
        unused_label = "its label, which is not a ClassLabel, among " if "label" in others else ""
        LOG.info("passed over in %s: %sthe features %s", source, unused_label, ", ".join(others))

    # Masks and the like beside the image are left undecoded as well.
    pictures = [name for name, feature in known.items() if isinstance(feature, tfds.features.Image)]
    decoders = {name: tfds.decode.SkipDecoding() for name in pictures}
    examples = _open_split(builder, source, split, decoders)
    return TfdsImages(source, split, class_names, examples, decoding or Decoding(image.shape[-1]))


def _open_split(builder: Any, source: str, split: str, decoders: dict[str, Any]) -> Any:
    try:
        return builder.as_data_source(split, decoders=decoders)
    except Exception as error:
        splits = ", ".join(map(repr, sorted(builder.info.splits)))
        raise UserError(
            f"split is {split!r}, which TFDS can't open for {source} ({_first_line(error)}), "
            f"expected one of {splits}"
        ) from None


def _prepared(tfds: Any, source: str, data_dir: str) -> Any:
    """The builder of a data set on disk with random access; makes the data set if need be."""
    name = source.removeprefix(PREFIX)
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except Exception as error:
        raise UserError(
            f"source is {source!r}, which TFDS can't open ({_first_line(error)}), expected the "
            f"name of a data set"
        ) from None
    if not builder.data_path.exists():
        _prepare(tfds, builder, source, data_dir)
    random_access = tfds.core.FileFormat.with_random_access()
    if not builder.info.available_file_formats() & random_access:
        command = ["tfds", "convert_format", f"--dataset_version_dir={builder.data_path}"]
        raise UserError(
            f"{builder.data_path} holds {builder.info.file_format.value}, expected array_record: "
            f"where TensorFlow is installed, {shlex.join(command)} --out_file_format=array_record "
            "adds it"
        )
    return builder


def _prepare(tfds: Any, builder: Any, source: str, data_dir: str) -> None:
    """Downloads a data set and writes it as ArrayRecord."""
    try:
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    except Exception as error:  # A data set's own code runs here: anything may be raised.
        missing = next(
            (
                cause.name
                for cause in _causes(error)
                if isinstance(cause, ImportError) and cause.name
            ),
            None,
        )
        command = ["tfds", "build", source.removeprefix(PREFIX), "--file_format=array_record"]
        command += [f"--data_dir={data_dir}"] if data_dir else []
        if missing is not None:
            raise UserError(
                f"{source} isn't in {builder.data_path} and preparing it needs {missing}, which "
                f"isn't installed: run {shlex.join(command)} once where it is; reading it needs it "
                "no more"
            ) from None
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and isinstance(error, AssertionError):
            raise UserError(
                f"{source} isn't in {builder.data_path} and must be downloaded by hand; TFDS "
                f"says: {_one_line(error)}"
            ) from None
        if any(
            type(cause).__module__.partition(".")[0] in ("requests", "urllib3")
            for cause in _causes(error)
        ):
            raise UserError(
                f"{source} isn't in {builder.data_path} and can't be downloaded (no connection), "
                f"expected a network, or the data set as {shlex.join(command)} makes it elsewhere"
            ) from None
        raise UserError(
            f"{source} isn't in {builder.data_path} and can't be made ({_first_line(error)})"
        ) from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


def _one_line(value: Any) -> str:
    return " ".join(str(value).split()).rstrip(".")
