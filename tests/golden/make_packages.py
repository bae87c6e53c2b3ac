"""Computes the golden files that public packages gave again.

    pip install torch diffusers transformers
    python -m tests.golden.make_packages [--write]

Inputs are those that the files hold; weights come from the formula of `tests/reference_weights.py`.
Prints and writes as `make_official.py` does.
"""

import argparse
import json

import torch
from diffusers import AutoencoderTiny
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.golden.make_official import HERE, Arrays, compare
from tests.reference_weights import formula_weight, read_golden


def give_weights(model: torch.nn.Module) -> None:
    """Puts the formula's weights in place of a module's own; counters stay as they are."""
    shapes = {key: tuple(array.shape) for key, array in model.state_dict().items() if array.ndim}
    weights = {key: torch.from_numpy(formula_weight(key, shape)) for key, shape in shapes.items()}
    model.load_state_dict(weights, strict=False)
    model.eval()


def tiny_autoencoder(golden: Arrays, metadata: dict[str, str]) -> Arrays:
    """What diffusers' tiny autoencoder makes of an image and of latents."""
    model = AutoencoderTiny(**json.loads(metadata["config"]))
    give_weights(model)
    with torch.no_grad():
        latents = model.encode(torch.from_numpy(golden["input.x"])).latents
        decoded = model.decode(torch.from_numpy(golden["input.z"])).sample
    return {"latents": latents.numpy(), "decoded": decoded.numpy()}


def clip_text(golden: Arrays, metadata: dict[str, str]) -> Arrays:
    """The states and embeddings of transformers' text tower, with either activation."""
    config, found = json.loads(metadata["config"]), {}
    ids = torch.from_numpy(golden["token_ids"]).long()
    for activation in ("gelu", "quick_gelu"):
        model = CLIPTextModelWithProjection(CLIPTextConfig(**config | {"hidden_act": activation}))
        give_weights(model)
        with torch.no_grad():
            given = model(input_ids=ids)
        found[f"{activation}.last_hidden_state"] = given.last_hidden_state.numpy()
        found[f"{activation}.text_embeds"] = given.text_embeds.numpy()
    return found


def main() -> None:
    """Goes through both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what was computed")
    options = parser.parse_args()
    for name, make in (("taesd", tiny_autoencoder), ("clip_text_tiny", clip_text)):
        compare(name, make(*read_golden(HERE / f"{name}.safetensors")), write=options.write)


if __name__ == "__main__":
    main()
