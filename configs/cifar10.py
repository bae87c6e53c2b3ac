"""CIFAR-10 32x32, unconditional, U-ViT-S/2 (44M parameters): FID 3.11 in the paper (50,000 samples,
EMA weights).

    python -m uvit_jax.main --job prepare --config configs/cifar10.py \\
        --config.prepare.source=tfds:cifar10
    python -m uvit_jax.main --config configs/cifar10.py

Hardware: one H200, 5 hours (3,434 images/s, python benchmarks/train_step.py); the paper used 4
A100.

The paper's weights, nothing to prepare:

    python -m uvit_jax.main --job sample --config configs/cifar10.py \\
        --config.init_from=cifar10_uvit_small.pth
"""

from ml_collections import ConfigDict

from uvit_jax.experiment.config import default_config


def get_config() -> ConfigDict:
    config = default_config()

    config.model.image_size = 32
    config.model.in_channels = 3
    config.model.patch_size = 2
    config.model.embed_dim = 512
    config.model.depth = 13
    config.model.num_heads = 8
    config.model.dtype = "bfloat16"

    config.diffusion.schedule = "vp_linear"

    config.data.source = "data/cifar10"
    config.data.flip = True
    config.prepare.crop = "none"

    config.train.steps = 500_000
    config.train.batch_size = 128
    config.train.save_every = 5000
    config.train.keep_every = 50_000

    config.optimizer.lr = 2e-4
    config.optimizer.warmup_steps = 2500
    config.optimizer.betas = (0.99, 0.999)
    config.optimizer.weight_decay = 0.03
    config.ema.rate = 0.9999

    # Euler-Maruyama on the reverse SDE, 1000 evaluations.
    config.sample.solver = "euler_maruyama"
    config.sample.steps = 1000
    config.sample.spacing = "time_uniform"
    config.sample.t_end = 1e-3

    # The paper's FID: 50,000 samples of the EMA weights; --config.evaluate.reference names the
    # statistics.
    config.evaluate.features = "inception"
    config.evaluate.num_samples = 50_000
    return config
