"""A stream of images through feature extractors into scores, saved now and then so that a killed
run goes on.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.interop.clip import TextEncoder, open_text_encoder
from uvit_jax.interop.clip_vision import ImageEncoder, open_image_encoder
from uvit_jax.interop.tokenizer import open_tokenizer
from uvit_jax.jobs.evaluation.image_streams import ImageStream, regrouped
from uvit_jax.metrics.feature_network import Extraction, FeatureNetwork, FutureFeatures
from uvit_jax.metrics.scores import Scores
from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.mesh import batch_parts, batch_sharding, replicated
from uvit_jax.telemetry.progress import Progress

SECONDS_BETWEEN_SAVES = 60.0


class ClipPair:
    """Both towers of a CLIP on the mesh: embeddings of images and of texts."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        """Raises UserError for a CLIP that can't be had, or whose towers don't fit each other."""
        name = experiment.evaluate.clip
        try:
            self.images: ImageEncoder = open_image_encoder(name)
            self.texts: TextEncoder = open_text_encoder(name)
            tokenizer = experiment.text_encoder.tokenizer or name
            self._tokenizer = open_tokenizer(
                tokenizer, context_length=self.texts.config.context_length
            )
            self.texts.check_tokenizer(self._tokenizer)
        except UserError as error:
            raise UserError(f"config.evaluate.clip is {name!r}: {error}") from None
        if self.texts.config.projection != self.images.config.projection:
            raise UserError(
                f"config.evaluate.clip is {name!r}, whose text tower projects to "
                f"{self.texts.config.projection} numbers and its image tower to "
                f"{self.images.config.projection}, expected one CLIP"
            )
        network = FeatureNetwork(
            name=self.images.name,
            sha256=self.images.sha256,
            prefix="",
            widths={"pool": self.images.config.projection},
            settings={},
            params=self.images.params,
            apply=lambda params, images, kinds: {
                kind: self.images.embed(params, images) for kind in kinds
            },
        )
        self._extraction = Extraction(network, mesh, ["pool"])
        self._mesh, self._params = mesh, place(self.texts.params, replicated(mesh))
        self._embed = jax.jit(self.texts.embed)

    @property
    def identity(self) -> dict[str, str]:
        """Which CLIP it is."""
        return {"name": self.images.name, "images": self.images.sha256, "texts": self.texts.sha256}

    def start(self, images: UInt8[np.ndarray, "n h w c"]) -> FutureFeatures:
        """Hands images to the devices."""
        return self._extraction.start(images)

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n p"]:
        """The embeddings of texts."""
        ids = self._tokenizer.tokenize(texts)
        rows = -(-len(ids) // batch_parts(self._mesh)) * batch_parts(self._mesh)
        filled = np.zeros((rows, ids.shape[1]), ids.dtype)
        filled[: len(ids)] = ids
        return fetch(self._embed(self._params, place(filled, batch_sharding(self._mesh))))[
            : len(ids)
        ]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What makes scores of a stream of images.

    Attributes:
      extraction: of the metrics' features.
      clip: for the CLIP score; None without.
      texts: `texts(range of samples)` are the texts they were drawn from.
    """

    extraction: Extraction
    clip: ClipPair | None = None
    texts: Callable[[range], Sequence[str]] | None = None

    def run(
        self,
        stream: ImageStream,
        scores: Scores | None,
        start: int,
        *,
        description: str,
        on_images: Callable[[UInt8[np.ndarray, "b h w c"]], None] = lambda images: None,
        save: Callable[[], None] = lambda: None,
        quiet: bool = False,
    ) -> None:
        """Takes a stream, from image `start` on, into the scores; all hosts call this together.

        While the devices are at work on some images, the host adds up the features of those before.

        Args:
          scores: those of images before `start`; None on hosts other than the first.
          on_images: given the images whose features were just added, on the first host, before any
            save.
          save: called now and then and at the end, on the first host; the scores then hold all
            images given so far.
          quiet: whether no progress is shown: another bar may be on the screen.
        """
        pending: tuple[np.ndarray, FutureFeatures, FutureFeatures | None] | None = None
        count, saved = start, time.monotonic()
        with Progress(
            stream.count,
            start=start,
            description=description,
            active=scores is not None and not quiet,
        ) as progress:
            for images in itertools.chain(
                regrouped(stream.batches(start), self.extraction.rows), [None]
            ):
                following = None
                if images is not None:
                    following = (
                        images,
                        self.extraction.start(images),
                        self.clip.start(images) if self.clip else None,
                    )
                if pending is not None:
                    self._finish(*pending, count, scores)
                    count += len(pending[0])
                    progress.update(count)
                    if scores is not None:
                        on_images(pending[0])
                        if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                            save()
                            saved = time.monotonic()
                pending = following
        if scores is not None:
            save()

    def _finish(
        self,
        images: np.ndarray,
        features: FutureFeatures,
        embeddings: FutureFeatures | None,
        first: int,
        scores: Scores | None,
    ) -> None:
        found = features.wait()
        pairs = None
        if embeddings is not None and self.clip is not None and self.texts is not None:
            texts = self.texts(range(first, first + len(images)))
            pairs = embeddings.wait()["pool"], self.clip.embed_texts(texts)
        if scores is None:
            return
        scores.update(found)
        if pairs is not None and scores.clip is not None:
            scores.clip.update(*pairs)
