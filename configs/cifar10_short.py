"""CIFAR-10 32x32 by class, U-ViT-S/2 (44M parameters), in 11 minutes on one H200: the
README's samples.

    python -m uvit_jax.main --job prepare --config configs/cifar10_short.py \\
        --config.prepare.source=tfds:cifar10
    python -m uvit_jax.main --config configs/cifar10_short.py --workdir runs/cifar10_short
    python -m uvit_jax.main --job sample --workdir runs/cifar10_short

Not a config of the paper, whose CIFAR-10 model has no classes and sees 19 times as many images.
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
    config.model.num_classes = 11  # ten classes and the empty label
    config.model.dtype = "bfloat16"

    config.diffusion.schedule = "vp_linear"
    config.diffusion.p_uncond = 0.1

    config.data.source = "data/cifar10"
    config.data.flip = True
    config.prepare.crop = "none"

    config.train.steps = 13_000
    config.train.batch_size = 256
    config.train.image_every = 2000
    config.train.save_every = 2000
    config.train.num_images = 80

    config.optimizer.lr = 3e-4
    config.optimizer.warmup_steps = 500
    config.optimizer.decay = "cosine"
    config.optimizer.betas = (0.9, 0.99)
    config.optimizer.weight_decay = 0.03
    config.ema.rate = 0.999

    config.sample.num_samples = 80
    config.sample.batch_size = 80
    config.sample.steps = 50
    config.sample.spacing = "logsnr"
    config.sample.guidance_scale = 1.5
    return config
