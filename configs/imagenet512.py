"""ImageNet 512x512, class-conditional, on latents: U-ViT-H/4 (501M parameters) and, as :large,
U-ViT-L/4 (287M).

FID in the paper 4.05 (:huge, the default) and 4.67 (:large); 50,000 samples, EMA weights, guidance
0.7.

    python -m uvit_jax.main --job prepare --config configs/imagenet512.py \\
        --config.prepare.source=IMAGENET
    python -m uvit_jax.main --config configs/imagenet512.py

Hardware, in hours of one H200 (python benchmarks/train_step.py): 348 for :huge (409 images/s), 189
for :large (753 images/s), divided by the number of GPUs where they scale; the paper used 8 A100.

The paper's weights, nothing to prepare:

    python -m uvit_jax.main --job sample --config configs/imagenet512.py \\
        --config.init_from=imagenet512_uvit_huge.pth
"""

from ml_collections import ConfigDict

from uvit_jax.errors import UserError
from uvit_jax.experiment.config import default_config


def get_config(variant: str = "huge") -> ConfigDict:
    if variant not in ("huge", "large"):
        raise UserError(
            f"configs/imagenet512.py has no variant {variant!r}, expected 'huge' or 'large'"
        )
    huge = variant == "huge"
    config = default_config()

    config.model.image_size = 64
    config.model.in_channels = 4
    config.model.patch_size = 4
    config.model.embed_dim = 1152 if huge else 1024
    config.model.depth = 29 if huge else 21
    config.model.num_heads = 16
    config.model.num_classes = 1001  # the last is the empty label
    config.model.conv = "none" if huge else "after"
    config.model.dtype = "bfloat16"
    config.model.remat = "matmuls"

    config.diffusion.schedule = "stable_diffusion" if huge else "vp_linear"
    config.diffusion.p_uncond = 0.1 if huge else 0.15

    # The paper decodes the huge models with a decoder fine-tuned on the same encoder (its
    # autoencoder_kl_ema.pth).
    config.autoencoder.name = (
        "stabilityai/sd-vae-ft-ema" if huge else "CompVis/stable-diffusion-v1-4/vae"
    )
    config.autoencoder.scale = 0.18215

    config.data.source = "data/imagenet512"
    config.data.flip = True
    config.prepare.crop = "adm"

    config.train.steps = 500_000
    config.train.batch_size = 1024
    config.train.image_every = 10_000
    config.train.save_every = 5000
    config.train.keep_every = 50_000

    config.optimizer.lr = 2e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.betas = (0.99, 0.99)
    config.optimizer.weight_decay = 0.03
    config.ema.rate = 0.9999

    config.sample.guidance_scale = 0.7
    if huge:
        # The paper's DPM-Solver++: third order, uniform in time, 50 evaluations, from T = 1 to
        # 1/1000.
        config.sample.solver = "dpmsolver++"
        config.sample.method = "singlestep_fast"
        config.sample.order = 3
        config.sample.steps = 50
        config.sample.spacing = "time_uniform"
        config.sample.t_end = 1e-3
    else:
        # The paper's DPM-Solver: third order, uniform in logSNR, 50 evaluations, from T = 1 to
        # 1e-4.
        config.sample.solver = "dpmsolver"
        config.sample.method = "singlestep"
        config.sample.order = 3
        config.sample.steps = 50
        config.sample.spacing = "logsnr"
        config.sample.t_end = 1e-4

    # The paper's FID: 50,000 samples of the EMA weights; --config.evaluate.reference names the
    # statistics.
    config.evaluate.features = "inception"
    config.evaluate.num_samples = 50_000
    return config
