"""Computes the golden files of U-ViT and its training again, with the authors' own code.

    git clone https://github.com/baofff/U-ViT && git -C U-ViT checkout ce55170
    pip install torch einops
    python -m tests.golden.make_official U-ViT [--write]

Inputs are those that the files hold; weights come from the formula of `tests/reference_weights.py`.
It prints how far each result is from the stored one, at most, over the largest stored number, and
with --write puts the results in place of what is stored.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.reference_weights import draw, formula_weight, read_golden

HERE = pathlib.Path(__file__).parent
UVITS = (
    "uvit_uncond_pixel",
    "uvit_class_latent",
    "uvit_class_mlp_time_qkv_bias",
    "uvit_no_skip",
    "uvit_text_latent",
)
Arrays = dict[str, np.ndarray]


def network(metadata: dict[str, str]) -> torch.nn.Module:
    """The authors' network of a file's config, with the formula's weights."""
    from libs import uvit, uvit_t2i

    module = uvit_t2i if metadata.get("kind") == "uvit_t2i" else uvit
    model = module.UViT(**json.loads(metadata["config"]))
    shapes = {key: tuple(array.shape) for key, array in model.state_dict().items()}
    model.load_state_dict(
        {key: torch.from_numpy(formula_weight(key, shape)) for key, shape in shapes.items()}
    )
    return model


def outputs_and_gradients(golden: Arrays, metadata: dict[str, str]) -> Arrays:
    """The output, the loss and two numbers of each parameter's gradient."""
    model = network(metadata)
    x, t, target, y, context = (
        torch.from_numpy(golden[name]) if (name := f"input.{each}") in golden else None
        for each in ("x", "t", "target", "y", "context")
    )
    condition = {
        name: given for name, given in (("y", y), ("context", context)) if given is not None
    }
    output = model(x, t, **condition)
    loss = (output - target).square().mean()
    loss.backward()
    found = {"output": output.detach().numpy(), "loss": loss.detach().numpy()[None]}
    for key, parameter in model.named_parameters():
        gradient = parameter.grad.numpy().astype(np.float64)
        projection = draw(f"proj.{key}", gradient.shape)
        found[f"grad_norm.{key}"] = np.asarray([np.linalg.norm(gradient)], np.float32)
        found[f"grad_dot.{key}"] = np.asarray([np.sum(gradient * projection)], np.float32)
    return found


def discrete(z0: torch.Tensor, n: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """x_n on Stable Diffusion's betas, and the time that the network is given."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.concatenate([[1.0], np.cumprod(1 - betas)])[n.numpy()]
    alpha, sigma = (
        torch.from_numpy(value.astype(np.float32))[:, None, None, None]
        for value in (np.sqrt(kept), np.sqrt(1 - kept))
    )
    return alpha * z0 + sigma * noise, n


def continuous(z0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """x_t of the authors' VP-SDE, and the time that the network is given."""
    import sde

    mean, std = sde.VPSDE().marginal_prob(z0, t)
    return mean + sde.stp(std, noise), 999 * t


def trained(
    golden: Arrays, metadata: dict[str, str], mix: Callable[..., tuple[torch.Tensor, Any]]
) -> Arrays:
    """The losses of the stored steps, and the weights and their average after them."""
    hparams = json.loads(metadata["hparams"])
    model, average = network(metadata), network(metadata)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=hparams["lr"],
        weight_decay=hparams["weight_decay"],
        betas=tuple(hparams["betas"]),
    )
    warm_up = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / hparams["warmup_steps"], 1)
    )
    losses = []
    for i in range(hparams["n_steps"]):
        z0, t, noise, y = (
            torch.from_numpy(golden[f"step{i}.{n}"]) for n in ("z0", "t", "eps", "y")
        )
        x, time = mix(z0, t, noise)
        optimizer.zero_grad()
        loss = (noise - model(x, time, y=y)).square().flatten(1).mean(1).mean()
        loss.backward()
        optimizer.step()
        warm_up.step()
        losses.append(loss.item())
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.mul_(hparams["ema_rate"]).add_((1 - hparams["ema_rate"]) * new)
    found = {"losses": np.asarray(losses, np.float32)}
    for prefix, module in (("final", model), ("ema", average)):
        found |= {f"{prefix}.{key}": array.numpy() for key, array in module.state_dict().items()}
    return found


def compare(name: str, found: Arrays, *, write: bool) -> None:
    """Prints how far the results are from what the file holds; writes them where asked to."""
    path = HERE / f"{name}.safetensors"
    golden, metadata = read_golden(path)
    worst = max(
        float(np.max(np.abs(array - golden[key])) / max(np.max(np.abs(golden[key])), 1e-30))
        for key, array in found.items()
    )
    print(f"{name:30} {len(found):4} arrays, relative difference at most {worst:.1e}")
    if write:
        save_file(golden | found, path, metadata)


def main() -> None:
    """Goes through all files that the authors' code made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("official", type=pathlib.Path, help="a checkout of baofff/U-ViT")
    parser.add_argument("--write", action="store_true", help="write what was computed")
    options = parser.parse_args()
    sys.path.insert(0, str(options.official))
    for name in UVITS:
        found = outputs_and_gradients(*read_golden(HERE / f"{name}.safetensors"))
        compare(name, found, write=options.write)
    for name, mix in (("train_discrete", discrete), ("train_continuous", continuous)):
        found = trained(*read_golden(HERE / f"{name}.safetensors"), mix)
        compare(name, found, write=options.write)


if __name__ == "__main__":
    main()
