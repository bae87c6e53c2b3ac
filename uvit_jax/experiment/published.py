"""The paper's ten published models by name: their configs, and where their weights are found."""

import dataclasses
import os
import pathlib

from uvit_jax.errors import UserError
from uvit_jax.interop.hub import find_model

PAGE = "https://github.com/baofff/U-ViT#pretrained-models"
# A folder of weights for all projects.
FOLDER = "UVIT_JAX_WEIGHTS"


@dataclasses.dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
      config: its config file, a variant included, of those that came with the package.
      weights: the file's name on the paper's page.
    """

    config: str
    weights: str


PUBLISHED = {
    "cifar10": Published("cifar10.py", "cifar10_uvit_small.pth"),
    "celeba64": Published("celeba64.py", "celeba64_uvit_small.pth"),
    "imagenet64-mid": Published("imagenet64.py:mid", "imagenet64_uvit_mid.pth"),
    "imagenet64-large": Published("imagenet64.py:large", "imagenet64_uvit_large.pth"),
    "imagenet256-large": Published("imagenet256.py:large", "imagenet256_uvit_large.pth"),
    "imagenet256-huge": Published("imagenet256.py:huge", "imagenet256_uvit_huge.pth"),
    "imagenet512-large": Published("imagenet512.py:large", "imagenet512_uvit_large.pth"),
    "imagenet512-huge": Published("imagenet512.py:huge", "imagenet512_uvit_huge.pth"),
    "mscoco256": Published("mscoco256.py:small", "mscoco_uvit_small.pth"),
    "mscoco256-deep": Published("mscoco256.py:deep", "mscoco_uvit_small_deep.pth"),
}


def find_published_weights(name: str, *, hub: str | None = None) -> pathlib.Path:
    """Finds the weights of a published model, as `.pth` or `.safetensors`.

    They are looked for in the folder that UVIT_JAX_WEIGHTS names, in weights/ and in the current
    folder, and then in a repository of the Hugging Face hub where one is named.

    Args:
      name: of `PUBLISHED`.
      hub: "owner/repo", for files that someone has put there; the paper's own are not.

    Raises:
      UserError: for weights that are nowhere; the sentence says where the file is published.
    """
    file = PUBLISHED[name].weights
    names = (file, pathlib.Path(file).with_suffix(".safetensors").name)
    own = os.environ.get(FOLDER, "")
    folders = [pathlib.Path(folder).expanduser() for folder in (own, "weights", ".") if folder]
    for folder in folders:
        for found in (folder / candidate for candidate in names):
            if found.is_file():
                return found
    if hub:
        return find_model(f"{hub}/{file}")
    raise UserError(
        f"the weights of {name!r} are not here: download {file} from {PAGE} (it is on Google "
        f"Drive, which serves browsers alone) into {folders[0].absolute()}, or name the file as "
        "weights=PATH"
    )
