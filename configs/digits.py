"""Real 8x8 handwritten digits, class-conditional: a first light that takes minutes on two CPU
cores.

    python -m uvit_jax.main --config configs/digits.py
"""

from ml_collections import ConfigDict

from uvit_jax.experiment.config import default_config


def get_config() -> ConfigDict:
    config = default_config()

    config.model.image_size = 8
    config.model.in_channels = 1
    config.model.patch_size = 4
    config.model.embed_dim = 128
    config.model.depth = 5
    config.model.num_heads = 8
    config.model.num_classes = 11  # ten digits and the empty label

    config.diffusion.schedule = "vp_linear"
    config.diffusion.p_uncond = 0.1

    config.data.source = "digits"

    config.train.steps = 3500
    config.train.batch_size = 64
    config.train.log_every = 50
    config.train.image_every = 1000
    config.train.save_every = 500
    config.train.num_images = 100

    config.optimizer.lr = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"
    config.optimizer.betas = (0.9, 0.99)
    config.optimizer.weight_decay = 0.03
    config.ema.rate = 0.998

    config.sample.num_samples = 100
    config.sample.batch_size = 200
    config.sample.steps = 25
    config.sample.spacing = "logsnr"
    config.sample.guidance_scale = 0.5

    config.evaluate.num_samples = 2000
    return config
