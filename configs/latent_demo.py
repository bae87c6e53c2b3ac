"""A latent model of a folder of a few images on a laptop: prepared, trained and sampled in minutes
on two cores.

Wants a folder of images, its sub-folders being classes, and the weights of TAEF2 (8 MB):
taef2_encoder.pth and taef2_decoder.pth of github.com/madebyollin/taesd in a folder, or the hub's
name below where it can be reached.

    python -m uvit_jax.main --job prepare --config configs/latent_demo.py \\
        --config.prepare.source=IMAGES --config.autoencoder.name=TAEF2
    python -m uvit_jax.main --config configs/latent_demo.py \\
        --config.autoencoder.name=TAEF2 --config.model.num_classes=51
    python -m uvit_jax.main --job sample --workdir runs/latent_demo

num_classes is one more than the classes of the folder. On 50 photographs, one a class, the three
take six minutes; the samples then have the colours and rough shapes of each class's photograph, and
details want many times the steps.
"""

from ml_collections import ConfigDict

from uvit_jax.experiment.config import default_config


def get_config() -> ConfigDict:
    config = default_config()

    config.model.image_size = 32  # latents of images of 256x256 pixels
    config.model.in_channels = 32
    config.model.patch_size = 4
    config.model.embed_dim = 384
    config.model.depth = 3
    config.model.num_heads = 6
    config.model.num_classes = 51  # fifty, and the empty label

    config.diffusion.schedule = "vp_linear"
    # A token carries 512 numbers, more than it is wide: their noise would not fit through, the
    # image does.
    config.diffusion.prediction = "x0"
    config.diffusion.p_uncond = 0.1

    config.autoencoder.name = "madebyollin/taef2"
    config.autoencoder.batch_size = 4
    config.data.source = "data/latent_demo"
    config.prepare.images_per_shard = 16
    config.prepare.mirror = False
    config.prepare.batch_size = 8

    config.train.steps = 1200
    config.train.batch_size = 8
    config.train.log_every = 50
    config.train.image_every = 0
    config.train.save_every = 400
    config.train.num_images = 12

    config.optimizer.lr = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"
    config.optimizer.betas = (0.9, 0.99)
    config.ema.rate = 0.995

    config.sample.num_samples = 25
    config.sample.batch_size = 25
    config.sample.steps = 25
    config.sample.spacing = "logsnr"
    config.sample.guidance_scale = 0.4
    return config
