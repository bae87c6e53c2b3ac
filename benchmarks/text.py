"""Does text steer? A tiny model learns 16 captioned images by heart, then draws each caption.

    python benchmarks/text.py COCO --tokenizer bpe_simple_vocab_16e6.txt.gz   # 5 minutes on 2 cores

COCO is a folder of COCO's layout. Its first 16 images are prepared as 32x32 pixels with the states
of their captions (by default of a CLIP ViT-L/14 tower with random weights: `--text-encoder`
names another), a small U-ViT is trained, and each image's first caption drawn once. Counted are the
samples whose nearest training image, in pixels, is the caption's own: with its own caption, and
with the next image's, where it should be the next image.
"""

import argparse
import json
import pathlib
import tempfile

import numpy as np

from uvit_jax.data.image_sources.coco import coco_splits
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.errors import UserError, run_script
from uvit_jax.experiment.config import default_config, resolve
from uvit_jax.jobs import prepare, sample, train

IMAGES = 16


def subset(source: pathlib.Path, split: str, out: pathlib.Path, count: int) -> None:
    """Makes a COCO folder of another's first images, with the first caption of each.

    Raises:
      UserError: for a folder of another layout, or an `out` that exists.
    """
    if split not in coco_splits(source):
        raise UserError(
            f"{source} has no annotations/captions_{split}.json, expected a folder of COCO's layout"
        )
    if out.exists():
        raise UserError(f"{out} is there already, expected another --out")
    name = f"annotations/captions_{split}.json"
    saved = json.loads((source / name).read_text())
    images = sorted(saved["images"], key=lambda image: image["id"])[:count]
    first = {annotation["image_id"]: annotation for annotation in reversed(saved["annotations"])}
    annotations = [first[image["id"]] for image in images]
    (out / "annotations").mkdir(parents=True)
    (out / name).write_text(json.dumps({"images": images, "annotations": annotations}))
    (out / split).mkdir()
    for image in images:
        (out / split / image["file_name"]).symlink_to(
            (source / split / image["file_name"]).absolute()
        )


def overfit(
    source: pathlib.Path, split: str, folder: pathlib.Path, fields: dict[str, object]
) -> tuple[int, int, int]:
    """Trains on the folder's images and draws their captions; counts nearest training images.

    Args:
      source: a COCO folder with few enough images to learn by heart.
      split: its split.
      folder: for data, checkpoints and pictures.
      fields: config fields by dotted name, the text encoder at least.

    Returns:
      Of the samples drawn with their own captions, how many are nearest to their own image; of
      those drawn with the next image's caption, how many to the next image, and to their own.
    """
    config = default_config()
    own = {
        "model.image_size": 32,
        "model.in_channels": 3,
        "model.patch_size": 16,
        "model.embed_dim": 128,
        "model.depth": 3,
        "model.num_heads": 2,
        "model.context_dim": 768,
        "model.context_length": 77,
        "diffusion.prediction": "x0",
        "diffusion.p_uncond": 0.1,
        "data.source": str(folder / "data"),
        "prepare.source": str(source),
        "prepare.split": split,
        "prepare.crop": "lanczos",
        "train.steps": 2500,
        "train.batch_size": 16,
        "train.log_every": 100,
        "train.image_every": 0,
        "train.save_every": 0,
        "train.num_images": 16,
        "optimizer.lr": 2e-3,
        "optimizer.warmup_steps": 100,
        "optimizer.weight_decay": 0.0,
        "optimizer.decay": "cosine",
        "ema.rate": 0.99,
        "sample.num_samples": IMAGES,
        "sample.batch_size": IMAGES,
        "sample.steps": 20,
        "sample.spacing": "logsnr",
        "sample.format": "npz",
    }
    config.update_from_flattened_dict(own | fields)
    print(prepare.run(resolve(config), folder / "run"))
    print(train.run(resolve(config), folder / "run"))

    data = PreparedData(folder / "data")
    real = data.read(np.arange(len(data)), np.zeros(len(data), bool))["x"].astype(np.float64)
    captions = [data.captions(i)[0] for i in range(len(data))]

    def nearest(prompts: list[str], name: str) -> np.ndarray:
        (folder / f"{name}.txt").write_text("\n".join(prompts))
        config.sample.prompts, config.sample.out = str(folder / f"{name}.txt"), str(folder / name)
        print(sample.run(resolve(config), folder / "run"))
        images = np.load(folder / name / "samples.npz")["images"].astype(np.float64)
        return np.square(images[:, None] - real).sum((2, 3, 4)).argmin(1)

    numbers = np.arange(len(data))
    steered = nearest(captions, "own")
    moved = nearest([*captions[1:], captions[0]], "next")
    following = (numbers + 1) % len(data)
    return (
        int((steered == numbers).sum()),
        int((moved == following).sum()),
        int((moved == numbers).sum()),
    )


def main() -> None:
    """Prints the three counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=pathlib.Path, help="a folder of COCO's layout")
    parser.add_argument("--split", default="train2017")
    parser.add_argument("--text-encoder", default="random:0")
    parser.add_argument(
        "--tokenizer", default="", help="of the text encoder; needed for a random one"
    )
    parser.add_argument("--out", type=pathlib.Path, help="keep data, weights and pictures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or pathlib.Path(temporary)
        subset(options.source, options.split, folder / "coco", IMAGES)
        fields = {
            "text_encoder.name": options.text_encoder,
            "text_encoder.tokenizer": options.tokenizer,
        }
        own, following, stayed = overfit(folder / "coco", options.split, folder, fields)
    print(
        f"asked with its own caption, the nearest image is its own: {own} of {IMAGES} (asked: at "
        "least 14)"
    )
    print(
        f"asked with the next image's caption, it is the next one: {following} of {IMAGES}; still "
        f"its own: {stayed}"
    )


if __name__ == "__main__":
    run_script(main)
