"""CelebA 64x64, unconditional, U-ViT-S/4 (44M parameters): FID 2.87 in the paper (50,000 samples,
EMA weights).

    python -m uvit_jax.main --job prepare --config configs/celeba64.py \\
        --config.prepare.source=CELEBA/img_align_celeba
    python -m uvit_jax.main --config configs/celeba64.py

Hardware: one H200, 5 hours (3,421 images/s, python benchmarks/train_step.py); the paper used 4
A100. The images are the aligned ones (178x218), cropped to 128x128 around the face and halved. The
training split is the first 162,770 files: put them in a folder of their own, or use
--config.prepare.source=tfds:celeb_a.

The paper's weights, nothing to prepare:

    python -m uvit_jax.main --job sample --config configs/celeba64.py \\
        --config.init_from=celeba64_uvit_small.pth
"""

from ml_collections import ConfigDict

from uvit_jax.experiment.config import default_config


def get_config() -> ConfigDict:
    config = default_config()

    config.model.image_size = 64
    config.model.in_channels = 3
    config.model.patch_size = 4
    config.model.embed_dim = 512
    config.model.depth = 13
    config.model.num_heads = 8
    config.model.dtype = "bfloat16"

    config.diffusion.schedule = "vp_linear"

    config.data.source = "data/celeba64"
    config.data.flip = True
    config.prepare.crop = "celeba"

    config.train.steps = 500_000
    config.train.batch_size = 128
    config.train.save_every = 5000
    config.train.keep_every = 50_000

    config.optimizer.lr = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.betas = (0.99, 0.99)
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
