"""Small folders of images and small autoencoders on disk, for tests of the jobs that read them."""

import json
import pathlib

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from tests.reference_weights import formula_weight

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def write_images(
    folder: pathlib.Path, *, classes: int = 3, per_class: int = 4, size: tuple[int, int] = (24, 20)
) -> None:
    """Class folders c0, c1, ... of smooth PNGs, each one different."""
    y, x = np.indices(size) / max(size)
    for c in range(classes):
        for i in range(per_class):
            phase = np.random.default_rng([c, i]).uniform(0, 6, 3)
            image = np.stack([np.sin((c + 2) * x + (i + 1) * y + p) for p in phase], -1)
            path = folder / f"c{c}" / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(((image + 1) * 127.5).astype(np.uint8)).save(path)


def write_kl(path: pathlib.Path, seed: int = 0) -> str:
    """A tiny KL autoencoder (factor 4, 4 latent channels) as a CompVis state dict; returns its name for a config."""
    keys = json.loads((GOLDEN / "autoencoder_tiny_keys.json").read_text())
    save_file({key: formula_weight(key, tuple(shape), seed) for key, shape in keys.items()}, path)
    return str(path)


def write_taesd(path: pathlib.Path) -> str:
    """A tiny autoencoder of the TAESD family (factor 8, 4 latent channels); returns its name for a config."""
    keys = json.loads((GOLDEN / "taesd_keys.json").read_text())
    save_file({key: formula_weight(key, tuple(shape)) for key, shape in keys.items()}, path)
    return str(path)
