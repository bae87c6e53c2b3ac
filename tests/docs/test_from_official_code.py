"""The page for users of the official code names every field of theirs, and fields of ours."""

import importlib
import re

from tests.docs.blocks import ROOT
from uvit_jax.command_line import JOBS
from uvit_jax.experiment.config import field_names
from uvit_jax.interop.official_config import _OTHERS, _RENAMED

PAGE = (ROOT / "docs" / "from_official_code.md").read_text()
FIELDS = PAGE.split("## Config fields")[1].split("## Weights")[0]
# Of github.com/baofff/U-ViT's nine configs, without nnet's, and what its scripts read besides.
THEIRS = """seed pred z_shape autoencoder.pretrained_path autoencoder.scale_factor train.n_steps
train.batch_size train.mode train.log_interval train.eval_interval train.save_interval
optimizer.name optimizer.lr lr_scheduler.name lr_scheduler.warmup_steps grad_clip ema_rate
dataset.name dataset.path dataset.resolution dataset.random_flip dataset.cfg dataset.p_uncond
sample.sample_steps sample.n_samples sample.mini_batch_size sample.algorithm sample.cfg
sample.scale sample.path benchmark mixed_precision nnet_path output_path"""


def test_every_field_of_theirs_has_its_row():
    first = {word for row in FIELDS.splitlines() for word in re.findall(r"`([^`]+)`", row[:110])}
    nnet = {*_RENAMED, *_OTHERS} - {"num_params", "kind"}  # two keys of our golden files alone
    for name in [*THEIRS.split(), *(f"nnet.{name}" for name in nnet)]:
        assert name in first or f".{name.split('.')[-1]}" in first, name


def test_fields_of_ours_on_the_page_are_there():
    known, sections = set(field_names()), {name.split(".")[0] for name in field_names()}
    for row in FIELDS.splitlines():
        cells = row.split("|")
        if len(cells) > 2:
            for name in re.findall(r"`(\w+\.\w+)`", cells[2]):
                assert name in known or name.split(".")[0] not in sections, name


def test_modules_and_jobs_on_the_page_are_there():
    for name in set(re.findall(r"`(uvit_jax(?:\.\w+)+)`", PAGE)):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name
    assert set(re.findall(r"`uvit-jax (\w+)", PAGE)) <= set(JOBS)
