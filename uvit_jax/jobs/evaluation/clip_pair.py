"""Both towers of a CLIP on the mesh, for the CLIP score."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from uvit_jax.errors import UserError
from uvit_jax.interop.clip import TextEncoder, open_text_encoder
from uvit_jax.interop.clip_vision import ImageEncoder, open_image_encoder
from uvit_jax.interop.tokenizer import open_tokenizer
from uvit_jax.metrics.feature_network import Extraction, FeatureNetwork, FutureFeatures
from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.batches import padded, round_up
from uvit_jax.parallel.mesh import batch_parts, batch_sharding, replicated


class ClipPair:
    """Both towers of a CLIP on the mesh: embeddings of images and of texts."""

    def __init__(self, name: str, tokenizer: str, mesh: Mesh):
        """Opens both towers.

        name: `config.evaluate.clip`. tokenizer: name or file of another tokenizer than the CLIP's
        own; empty for its own.

        Raises:
          UserError: for a CLIP that can't be had, or towers that are not of one CLIP.
        """
        try:
            self.images: ImageEncoder = open_image_encoder(name)
            self.texts: TextEncoder = open_text_encoder(name)
            self._tokenizer = open_tokenizer(
                tokenizer or name, context_length=self.texts.config.context_length
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
        """Name and hashes of both towers, for the report."""
        return {"name": self.images.name, "images": self.images.sha256, "texts": self.texts.sha256}

    def start(self, images: UInt8[np.ndarray, "n h w c"]) -> FutureFeatures:
        """Dispatches images to the devices; their embeddings are of the kind "pool"."""
        return self._extraction.start(images)

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n p"]:
        """The embeddings of texts."""
        ids = self._tokenizer.tokenize(texts)
        batch = padded(ids, round_up(len(ids), batch_parts(self._mesh)))
        return fetch(self._embed(self._params, place(batch, batch_sharding(self._mesh))))[
            : len(ids)
        ]
