"""Small folders of images and small autoencoders on disk, for tests of the jobs that read them."""

import gzip
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
    """A tiny KL autoencoder (factor 4, 4 latent channels) as a CompVis state dict; returns its name
    for a config.
    """
    keys = json.loads((GOLDEN / "autoencoder_tiny_keys.json").read_text())
    save_file({key: formula_weight(key, tuple(shape), seed) for key, shape in keys.items()}, path)
    return str(path)


def write_taesd(path: pathlib.Path) -> str:
    """A tiny autoencoder of the TAESD family (factor 8, 4 latent channels); returns its name for a
    config.
    """
    keys = json.loads((GOLDEN / "taesd_keys.json").read_text())
    save_file({key: formula_weight(key, tuple(shape)) for key, shape in keys.items()}, path)
    return str(path)


def write_clip(folder: pathlib.Path, *, context_length: int = 24) -> dict[str, str]:
    """A tiny text tower of width 32 and a tokenizer of single bytes; returns their fields for a
    config.
    """
    keys = json.loads((GOLDEN / "clip_text_tiny_keys.json").read_text())
    # The ids of 256 bytes, inside a word and at its end, and of a text's start and end.
    rows = {"token_embedding": 514, "position_embedding": context_length}
    shapes = {
        key: [rows.get(key.split(".")[-2], shape[0]), *shape[1:]] for key, shape in keys.items()
    }
    config = {"vocab_size": 514, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2}
    config |= {
        "num_attention_heads": 4,
        "max_position_embeddings": context_length,
        "projection_dim": 16,
    }
    folder.mkdir(parents=True)
    save_file(
        {key: formula_weight(key, tuple(shape)) for key, shape in shapes.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "clip_text_model"}))
    (folder / "merges.txt.gz").write_bytes(gzip.compress(b'"bpe#version: 0.2\n'))
    return {
        "text_encoder.name": str(folder),
        "text_encoder.tokenizer": str(folder / "merges.txt.gz"),
    }


def write_coco(folder: pathlib.Path, *, count: int = 6, captions: int = 2) -> list[list[str]]:
    """COCO's layout with smooth images and captions that name each one's own letters; returns the
    captions.
    """
    write_images(folder / "made", classes=1, per_class=count)
    (folder / "train2017").mkdir()
    (folder / "annotations").mkdir()
    texts = [[f"{chr(97 + i) * 3} {chr(107 + k)}" for k in range(captions)] for i in range(count)]
    images, annotations = [], []
    for i, path in enumerate(sorted((folder / "made" / "c0").iterdir())):
        path.rename(folder / "train2017" / f"{i:012d}.png")
        images.append({"id": i, "file_name": f"{i:012d}.png", "height": 24, "width": 20})
        annotations += [
            {"id": 10 * i + k, "image_id": i, "caption": text} for k, text in enumerate(texts[i])
        ]
    saved = {"images": images, "annotations": annotations}
    (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(saved))
    return texts
