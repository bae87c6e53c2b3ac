"""A stream of images through feature networks into scores, saved regularly for a killed run."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from uvit_jax.jobs.evaluation.clip_pair import ClipPair
from uvit_jax.jobs.evaluation.image_streams import ImageStream, regrouped
from uvit_jax.metrics.feature_network import Extraction, FutureFeatures
from uvit_jax.metrics.scores import Scores
from uvit_jax.parallel.batches import one_ahead
from uvit_jax.telemetry.progress import Progress

SECONDS_BETWEEN_SAVES = 60.0


@dataclasses.dataclass(frozen=True)
class Scoring:
    """The networks that a stream's scores need.

    Attributes:
      extraction: the metrics' features.
      clip: for the CLIP score; None without.
      texts: `texts(range of samples)` returns the texts that the samples were drawn from.
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
        on_images: Callable[[UInt8[np.ndarray, "b h w c"]], None] | None = None,
        save: Callable[[], None] | None = None,
        quiet: bool = False,
    ) -> None:
        """Adds a stream's images from number `start` on to the scores.

        All hosts call this together. The devices work on the next images while the host adds the
        features of these.

        Args:
          scores: those of images before `start`; None on hosts other than the first.
          on_images: called on the first host with the images just added, before any save.
          save: called on the first host every `SECONDS_BETWEEN_SAVES` and at the end; the scores
            then hold all images given to `on_images`.
          quiet: True shows no progress bar, where another one may be on the screen.
        """
        count, saved = start, time.monotonic()
        with Progress(
            stream.count,
            start=start,
            description=description,
            active=scores is not None and not quiet,
        ) as progress:
            groups = regrouped(stream.batches(start), self.extraction.rows)
            for images, features, embeddings in one_ahead(map(self._start, groups)):
                self._add(images, features, embeddings, count, scores)
                count += len(images)
                progress.update(count)
                if scores is None:
                    continue
                if on_images is not None:
                    on_images(images)
                if save is not None and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    save()
                    saved = time.monotonic()
        if scores is not None and save is not None:
            save()

    def _start(
        self, images: UInt8[np.ndarray, "b h w c"]
    ) -> tuple[UInt8[np.ndarray, "b h w c"], FutureFeatures, FutureFeatures | None]:
        """Dispatches images to the devices, without waiting."""
        return images, self.extraction.start(images), self.clip.start(images) if self.clip else None

    def _add(
        self,
        images: UInt8[np.ndarray, "b h w c"],
        features: FutureFeatures,
        embeddings: FutureFeatures | None,
        first: int,
        scores: Scores | None,
    ) -> None:
        """Waits for the features of images `first`, first + 1, ... and adds them to the scores."""
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
