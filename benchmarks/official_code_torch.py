"""Speed of the official PyTorch U-ViT: one JSON row a line for the job on stdin.

`official_code.py` starts it.

It runs in a process of its own, whose GPU memory is free when it ends, and needs torch, einops and
a checkout of the official code, of which `libs/uvit.py` and `dpm_solver_pp.py` are imported as they
are. On a CPU float16 becomes bfloat16, without a scaler.
"""

import contextlib
import copy
import dataclasses
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

WARM_UP = 3
EMA_RATE = 0.9999


@dataclasses.dataclass(frozen=True)
class Form:
    """Settings that the official network runs with, by default its authors' own.

    Attributes:
      half: autocast's dtype; with float16 the loss is scaled.
      float32_attention: keeps attention out of autocast, in the float32 that the official code
        casts to.
      tuned: fused AdamW and the EMA of all parameters at once; in sampling, both halves of guidance
        in one batch.
      compiled: under torch.compile in its default mode.
    """

    half: str = "float16"
    float32_attention: bool = False
    tuned: bool = False
    compiled: bool = False


FORMS = {
    "published": Form(),
    "float32": Form(float32_attention=True),
    "tuned": Form("bfloat16", tuned=True),
    "compiled": Form("bfloat16", tuned=True, compiled=True),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Device of the run, and autocast of one form on it."""

    form: Form

    @property
    def device(self) -> str:
        """The GPU if there is one, else the CPU."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def half(self) -> torch.dtype:
        """Autocast's dtype."""
        return getattr(torch, self.form.half if self.device == "cuda" else "bfloat16")

    def autocast(self) -> torch.autocast:
        """Context in which the network runs."""
        return torch.autocast(self.device, dtype=self.half)

    def synchronize(self) -> None:
        """Waits until the device is idle."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def attention(self) -> Iterator[str]:
        """Runs attention in the form's dtype within this context; yields the dtype's name."""
        functional = torch.nn.functional
        plain = functional.scaled_dot_product_attention

        def outside(*args: Any) -> torch.Tensor:
            with torch.autocast(self.device, enabled=False):
                return plain(*args)

        asked = outside if self.form.float32_attention else plain
        with mock.patch.object(functional, "scaled_dot_product_attention", asked):
            probe = torch.zeros(1, 1, 8, 8, device=self.device)
            with self.autocast():
                # Measured, not assumed: releases of torch differ in whether autocast casts what
                # attention is given.
                dtype = functional.scaled_dot_product_attention(probe, probe, probe).dtype
            yield str(dtype).removeprefix("torch.")


def train_step(
    network: torch.nn.Module, machine: Machine, batch: int, job: dict[str, Any]
) -> Callable[[], Any]:
    """Builds one whole step on random examples: noise-prediction loss, gradients, AdamW, EMA."""
    form, device = machine.form, machine.device
    average = copy.deepcopy(network).requires_grad_(False)
    old: list[torch.Tensor] = list(average.parameters())
    new: list[torch.Tensor] = list(network.parameters())
    optimizer = torch.optim.AdamW(new, **job["optimizer"], fused=True if form.tuned else None)
    scaler = torch.amp.GradScaler(device, enabled=machine.half == torch.float16)
    network.train()
    call = torch.compile(network) if form.compiled else network
    remaining = torch.cumprod(1 - betas(device), 0)
    x, labels = examples(batch, device, job)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        index = torch.randint(0, len(remaining), (batch,), device=device)
        alpha, noise = remaining[index].view(-1, 1, 1, 1), torch.randn_like(x)
        noisy = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
        with machine.autocast():
            predicted = call(noisy, index + 1, labels)
        loss = (noise - predicted.float()).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            if form.tuned:
                torch._foreach_lerp_(old, new, 1 - EMA_RATE)
            else:
                for mean, value in zip(old, new, strict=True):
                    mean.mul_(EMA_RATE).add_((1 - EMA_RATE) * value)
        return loss.detach()

    return step


def sampling(
    network: torch.nn.Module, machine: Machine, batch: int, job: dict[str, Any]
) -> Callable[[int], Any]:
    """Builds `run(evaluations)`: latents by the official DPM-Solver++ of third order.

    Steps are uniform in time, down to t = 1/1000. A guided evaluation is two calls of the network,
    as published, or one on twice the batch.
    """
    form, device = machine.form, machine.device
    official = importlib.import_module("dpm_solver_pp")
    schedule = official.NoiseScheduleVP(schedule="discrete", betas=betas(device))
    network.eval()
    call = torch.compile(network) if form.compiled else network
    x, labels = examples(batch, device, job)
    scale = job["guidance_scale"]
    empty = (
        torch.full((batch,), job["network"]["num_classes"] - 1, device=device) if scale else None
    )

    def ask(*inputs: Any) -> torch.Tensor:
        with machine.autocast():
            return call(*inputs).float()

    def predict(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = t * 1000
        if empty is None or labels is None:
            return ask(noisy, time, labels)
        if form.tuned:
            both = (torch.cat(pair) for pair in ((noisy, noisy), (time, time), (labels, empty)))
            guided, plain = ask(*both).chunk(2)
        else:
            guided, plain = ask(noisy, time, labels), ask(noisy, time, empty)
        return guided + scale * (guided - plain)

    solver = official.DPM_Solver(predict, schedule, predict_x0=True, thresholding=False)

    def run(evaluations: int) -> torch.Tensor:
        return solver.sample(torch.randn_like(x), steps=evaluations, eps=1e-3, T=1.0)

    return run


def betas(device: str) -> torch.Tensor:
    """Returns Stable Diffusion's 1000 betas, their square roots evenly spaced."""
    return (
        torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64, device=device)
        .square()
        .float()
    )


def examples(
    batch: int, device: str, job: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns random latents [b, c, h, w], and labels [b] if the network has them."""
    network = job["network"]
    classes, side = network["num_classes"], network["img_size"]
    labels = torch.randint(0, classes, (batch,), device=device) if classes > 0 else None
    return torch.randn(batch, network["in_chans"], side, side, device=device), labels


def measure(name: str, batch: int, job: dict[str, Any]) -> dict[str, Any]:
    """Measures images/s (median of `job["repeats"]`), first call and peak memory of one form."""
    machine = Machine(FORMS[name])
    with contextlib.redirect_stdout(sys.stderr):  # the module prints how it attends
        uvit: Any = importlib.import_module("libs.uvit")
    uvit.ATTENTION_MODE = "flash"
    with torch.device(machine.device):
        network = uvit.UViT(**job["network"])
    with machine.attention() as attention:
        warm_up: Callable[[], Any]
        if job["what"] == "train":
            warm_up = run = train_step(network, machine, batch, job)
        else:
            draw = sampling(network, machine, batch, job)
            warm_up, run = lambda: draw(WARM_UP), lambda: draw(job["evaluations"])
        began = time.monotonic()
        warm_up()
        machine.synchronize()
        first = time.monotonic() - began
        for _ in range(WARM_UP - 1):
            warm_up()
        machine.synchronize()
        if machine.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(job["repeats"]):
            began = time.monotonic()
            for _ in range(job["steps"]):
                last = run()
            machine.synchronize()
            seconds.append((time.monotonic() - began) / job["steps"])
    return {
        "images_per_sec": batch / sorted(seconds)[len(seconds) // 2],
        "gib": torch.cuda.max_memory_allocated() / 2**30 if machine.device == "cuda" else None,
        "compile_seconds": first,
        "attention": attention,
        "finite": bool(torch.isfinite(last).all()),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if machine.device == "cuda" else "cpu",
    }


def main() -> None:
    """Measures every form at every batch of the job."""
    job = json.load(sys.stdin)
    sys.path.insert(0, job["checkout"])
    for name in job["forms"]:
        for batch in job["batch_sizes"]:
            row = {"who": "official", "form": name, "batch": batch}
            try:
                row |= measure(name, batch, job)
            except torch.OutOfMemoryError:
                row["error"] = "does not fit"
            print(json.dumps(row), flush=True)
            # Each measurement starts with an empty device, and torch.compile with shapes it has not
            # seen.
            torch.compiler.reset()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
