"""MS-COCO 2014 at 256x256, text to image on latents: U-ViT-S/2 (45M parameters) and, as :deep, 17
blocks (58M).

FID in the paper 5.95 (:small, the default) and 5.48 (:deep): 30,000 captions of the validation set,
guidance 1.0.

    python -m uvit_jax.main --job prepare --config configs/mscoco256.py \\
        --config.prepare.source=COCO
    python -m uvit_jax.main --config configs/mscoco256.py
    python -m uvit_jax.main --job sample --workdir runs/mscoco256 \\
        --config.sample.prompts="a red bus; two cats on a sofa"

COCO holds train2014/ and annotations/captions_train2014.json. Hardware, in hours of one H200
(python benchmarks/train_step.py): 24 for :small (2,994 images/s), 31 for :deep (2,298 images/s);
the paper used 4 A100.

The paper's weights, nothing to prepare:

    python -m uvit_jax.main --job sample --config configs/mscoco256.py \\
        --config.init_from=mscoco_uvit_small.pth --config.sample.prompts="a red bus"
"""

from ml_collections import ConfigDict

from uvit_jax.errors import UserError
from uvit_jax.experiment.config import default_config


def get_config(variant: str = "small") -> ConfigDict:
    if variant not in ("small", "deep"):
        raise UserError(
            f"configs/mscoco256.py has no variant {variant!r}, expected 'small' or 'deep'"
        )
    config = default_config()

    config.model.image_size = 32
    config.model.in_channels = 4
    config.model.patch_size = 2
    config.model.embed_dim = 512
    config.model.depth = 17 if variant == "deep" else 13
    config.model.num_heads = 8
    config.model.context_dim = 768
    config.model.context_length = 77
    config.model.dtype = "bfloat16"

    config.diffusion.schedule = "stable_diffusion"
    config.diffusion.p_uncond = 0.1

    config.autoencoder.name = "CompVis/stable-diffusion-v1-4/vae"
    config.autoencoder.scale = 0.23010
    config.text_encoder.name = "openai/clip-vit-large-patch14"

    config.data.source = "data/mscoco256"
    config.prepare.split = "train2014"
    config.prepare.crop = "lanczos"
    config.prepare.mirror = False
    config.prepare.images_per_shard = 1024

    config.train.steps = 1_000_000
    config.train.batch_size = 256
    config.train.image_every = 10_000
    config.train.save_every = 5000
    config.train.keep_every = 50_000

    config.optimizer.lr = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.betas = (0.9, 0.9)
    config.optimizer.weight_decay = 0.03
    config.ema.rate = 0.9999

    # The paper's DPM-Solver++: third order, uniform in time, 50 evaluations, from T = 1 to 1/1000.
    config.sample.solver = "dpmsolver++"
    config.sample.method = "singlestep_fast"
    config.sample.order = 3
    config.sample.steps = 50
    config.sample.spacing = "time_uniform"
    config.sample.t_end = 1e-3
    config.sample.guidance_scale = 1.0

    # The paper's FID: of 30,000 captions of the validation set, prepared as above with split
    # val2014.
    config.evaluate.features = "inception"
    config.evaluate.num_samples = 30_000
    config.evaluate.captions = "data/mscoco256_val"
    return config
