"""The paper's configurations hold the paper's numbers, and their docstrings' commands are right."""

import importlib
import math
import shlex

import pytest

from tests.jobs.runs import ROOT
from uvit_jax.command_line import JOBS, separate
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment, load_experiment, resolve
from uvit_jax.interop import official_layout

# Of the official configs: patch, width, all blocks, heads, classes, conv; batch, steps, lr,
# warm-up, betas; p_uncond, schedule, steps of sampling, guidance; parameters.
PAPER = {
    "cifar10": (
        32,
        3,
        2,
        512,
        13,
        8,
        0,
        "after",
        128,
        500,
        2e-4,
        2500,
        (0.99, 0.999),
        0,
        "vp_linear",
        0,
        44_255_328,
    ),
    "celeba64": (
        64,
        3,
        4,
        512,
        13,
        8,
        0,
        "after",
        128,
        500,
        2e-4,
        5000,
        (0.99, 0.99),
        0,
        "vp_linear",
        0,
        44_292_228,
    ),
    "imagenet64:mid": (
        *(
            64,
            3,
            4,
            768,
            17,
            12,
            1000,
            "after",
            1024,
            300,
            3e-4,
            5000,
            (0.99, 0.99),
            0,
            "vp_linear",
            0,
            130_940_292,
        ),
    ),
    "imagenet64:large": (
        *(
            64,
            3,
            4,
            1024,
            21,
            16,
            1000,
            "after",
            1024,
            300,
            3e-4,
            5000,
            (0.99, 0.99),
            0,
            "vp_linear",
            0,
            286_827_652,
        ),
    ),
    "imagenet256:large": (
        *(32, 4, 2, 1024, 21, 16, 1001, "after", 1024, 300, 2e-4, 5000, (0.99, 0.99)),
        *(0.15, "vp_linear", 0.4, 286_763_172),
    ),
    "imagenet256:huge": (
        *(32, 4, 2, 1152, 29, 16, 1001, "none", 1024, 500, 2e-4, 5000, (0.99, 0.99)),
        *(0.1, "stable_diffusion", 0.4, 500_832_016),
    ),
    "imagenet512:large": (
        *(64, 4, 4, 1024, 21, 16, 1001, "after", 1024, 500, 2e-4, 5000, (0.99, 0.99)),
        *(0.15, "vp_linear", 0.7, 286_861_524),
    ),
    "imagenet512:huge": (
        *(64, 4, 4, 1152, 29, 16, 1001, "none", 1024, 500, 2e-4, 5000, (0.99, 0.99)),
        *(0.1, "stable_diffusion", 0.7, 500_942_656),
    ),
}


PAPER |= {
    f"mscoco256:{variant}": (
        *(32, 4, 2, 512, depth, 8, 0, "after", 256, 1000, 2e-4, 5000, (0.9, 0.9)),
        *(0.1, "stable_diffusion", 1.0, parameters),
    )
    for variant, depth, parameters in (("small", 13, 44_692_644), ("deep", 17, 58_345_636))
}


def experiment(name: str) -> Experiment:
    """The resolved config of a name as "imagenet256:large"."""
    module, _, variant = name.partition(":")
    return resolve(
        importlib.import_module(f"configs.{module}").get_config(*[variant] if variant else [])
    )


@pytest.mark.parametrize("name", PAPER)
def test_a_config_holds_the_papers_numbers(name):
    made = experiment(name)
    model, train, optimizer, sample = made.model, made.train, made.optimizer, made.sample
    assert (
        *(
            model.image_size,
            model.in_channels,
            model.patch_size,
            model.embed_dim,
            model.depth,
            model.num_heads,
        ),
        *(
            model.num_classes,
            model.conv,
            train.batch_size,
            train.steps / 1000,
            optimizer.lr,
            optimizer.warmup_steps,
        ),
        *(optimizer.betas, made.diffusion.p_uncond, made.diffusion.schedule, sample.guidance_scale),
    ) == PAPER[name][:-1]
    assert (optimizer.weight_decay, optimizer.decay, optimizer.eps, optimizer.grad_clip) == (
        0.03,
        "none",
        1e-8,
        0,
    )
    assert (model.qkv_bias, model.time_mlp, model.mlp_ratio, made.ema.rate) == (
        False,
        False,
        4,
        0.9999,
    )
    assert made.diffusion.prediction == "noise"
    # COCO's images are stored once.
    assert made.data.flip == (model.context_dim == 0)
    assert (model.context_dim, model.context_length) in ((0, 0), (768, 77))


@pytest.mark.parametrize("name", PAPER)
def test_a_config_has_the_papers_number_of_parameters(name):
    # Of the arrays in the published file, to which the network is held in tests/interop.
    shapes = [entry.shape for entry in official_layout.uvit_layout(experiment(name).model).values()]
    assert sum(map(math.prod, shapes)) == PAPER[name][-1]


@pytest.mark.parametrize("name", PAPER)
def test_a_config_samples_as_the_paper_does(name):
    made = experiment(name)
    sampler = made.sample
    found = (
        sampler.solver,
        sampler.method,
        sampler.order,
        sampler.spacing,
        sampler.steps,
        sampler.t_start,
    )
    if made.diffusion.schedule == "stable_diffusion":
        assert found == ("dpmsolver++", "singlestep_fast", 3, "time_uniform", 50, 1.0)
        assert sampler.t_end == 1 / 1000
    elif name in ("cifar10", "celeba64"):
        assert (sampler.solver, sampler.steps, sampler.spacing) == (
            "euler_maruyama",
            1000,
            "time_uniform",
        )
        assert sampler.t_end == 1e-3
    else:
        assert found == ("dpmsolver", "singlestep", 3, "logsnr", 50, 1.0)
        assert sampler.t_end == 1e-4


@pytest.mark.parametrize("module", ["imagenet64", "imagenet256", "imagenet512", "mscoco256"])
def test_the_default_variant_is_the_one_named_in_the_readme_and_others_are_refused(module):
    default = {"imagenet64": "mid", "mscoco256": "small"}.get(module, "huge")
    assert experiment(module) == experiment(f"{module}:{default}")
    with pytest.raises(UserError, match=f"configs/{module}.py has no variant 'tiny', expected '"):
        experiment(f"{module}:tiny")


@pytest.mark.parametrize(
    "name", [name for name in PAPER if name.startswith(("imagenet256", "imagenet512"))]
)
def test_latent_configs_have_stable_diffusions_scale(name):
    assert experiment(name).autoencoder.scale == 0.18215


def test_coco_has_a_scale_of_its_own_and_clips_text_tower():
    made = experiment("mscoco256")
    assert made.autoencoder.scale == 0.23010
    assert made.text_encoder.name == "openai/clip-vit-large-patch14"
    assert (made.prepare.crop, made.prepare.mirror, made.prepare.split) == (
        "lanczos",
        False,
        "train2014",
    )


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.py")), ids=lambda path: path.name)
def test_the_commands_in_a_configs_docstring_can_be_copied(path):
    """Each is an indented block's line, with its continuations; all read as the command line reads
    them, and one of them trains.
    """
    lines = importlib.import_module(f"configs.{path.stem}").__doc__.replace("\\\n", " ").split("\n")
    commands = [shlex.split(line) for line in lines if line.startswith("    ")]
    assert ["python", "-m", "uvit_jax.main", "--config"] in [command[:4] for command in commands]
    for command in commands:
        assert command[:3] == ["python", "-m", "uvit_jax.main"]
        kept, fields = separate(command[2:])
        given = dict(flag.removeprefix("--").split("=", 1) for flag in kept[1:])
        assert given.keys() <= {"config", "job", "workdir"}
        assert given.get("job", "train") in JOBS
        assert given.get("config", f"configs/{path.name}").split(":")[0] == f"configs/{path.name}"
        load_experiment(given.get("config", f"configs/{path.name}"), fields)
    assert not [line for line in lines if "python -m" in line and not line.startswith("    ")]
