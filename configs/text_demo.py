"""Text to image on a laptop: captioned images prepared with TAEF2 and CLIP, a small model trained,
prompts drawn.

Wants images with captions (COCO's layout, or a flat folder with a metadata.jsonl), the weights of
TAEF2 (8 MB, see configs/latent_demo.py) and those of CLIP ViT-L/14 (the hub's name below, or a
folder).

    python -m uvit_jax.main --job prepare --config configs/text_demo.py \\
        --config.prepare.source=COCO --config.prepare.split=train2017 \\
        --config.autoencoder.name=TAEF2
    python -m uvit_jax.main --config configs/text_demo.py --config.autoencoder.name=TAEF2
    python -m uvit_jax.main --job sample --workdir runs/text_demo \\
        --config.sample.prompts="a red bus; two cats on a sofa"

Without CLIP's weights a tower that was never trained stands in: --config.text_encoder.name=random:0
and --config.text_encoder.tokenizer=bpe_simple_vocab_16e6.txt.gz (OpenAI's). Every text then has
states of its own, without meaning: the model knows the captions it has seen and no others.
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
    config.model.context_dim = 768
    config.model.context_length = 77

    config.diffusion.schedule = "vp_linear"
    # A token carries 512 numbers, more than it is wide: their noise would not fit through, the
    # image does.
    config.diffusion.prediction = "x0"
    config.diffusion.p_uncond = 0.1

    config.autoencoder.name = "madebyollin/taef2"
    config.autoencoder.batch_size = 4
    config.text_encoder.name = "openai/clip-vit-large-patch14"
    config.data.source = "data/text_demo"
    config.prepare.crop = "lanczos"
    config.prepare.mirror = False
    config.prepare.images_per_shard = 16
    config.prepare.batch_size = 8

    config.train.steps = 600
    config.train.batch_size = 8
    config.train.log_every = 50
    config.train.image_every = 0
    config.train.save_every = 200
    config.train.num_images = 12

    config.optimizer.lr = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"
    config.optimizer.betas = (0.9, 0.99)
    config.ema.rate = 0.99

    config.sample.num_samples = 12
    config.sample.batch_size = 12
    config.sample.steps = 25
    config.sample.spacing = "logsnr"
    config.sample.guidance_scale = 0.4
    return config
