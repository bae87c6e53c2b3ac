"""ImageNet 64x64, class-conditional, in pixels: U-ViT-M/4 (131M parameters) and, as :large,
U-ViT-L/4 (287M).

FID in the paper 5.85 (:mid, the default) and 4.26 (:large): 50,000 samples, EMA weights, classes as
in the data.

    python -m uvit_jax.main --job prepare --config configs/imagenet64.py \\
        --config.prepare.source=IMAGENET
    python -m uvit_jax.main --config configs/imagenet64.py:large

Hardware, in hours of one H200 (python benchmarks/train_step.py): 56 for :mid (1,524 images/s), 113
for :large (755 images/s), divided by the number of GPUs where they scale; the paper used 8 A100.

The paper's weights, nothing to prepare (for :large, imagenet64_uvit_large.pth):

    python -m uvit_jax.main --job sample --config configs/imagenet64.py \\
        --config.init_from=imagenet64_uvit_mid.pth
"""

from ml_collections import ConfigDict

from uvit_jax.errors import UserError
from uvit_jax.experiment.config import default_config


def get_config(variant: str = "mid") -> ConfigDict:
    if variant not in ("mid", "large"):
        raise UserError(
            f"configs/imagenet64.py has no variant {variant!r}, expected 'mid' or 'large'"
        )
    large = variant == "large"
    config = default_config()

    config.model.image_size = 64
    config.model.in_channels = 3
    config.model.patch_size = 4
    config.model.embed_dim = 1024 if large else 768
    config.model.depth = 21 if large else 17
    config.model.num_heads = 16 if large else 12
    config.model.num_classes = 1000  # no empty label: these models are not guided
    config.model.dtype = "bfloat16"
    config.model.remat = "matmuls" if large else "none"

    config.diffusion.schedule = "vp_linear"

    config.data.source = "data/imagenet64"
    config.data.flip = True
    config.prepare.crop = "adm"

    config.train.steps = 300_000
    config.train.batch_size = 1024
    config.train.save_every = 5000
    config.train.keep_every = 50_000

    config.optimizer.lr = 3e-4
    config.optimizer.warmup_steps = 5000
    config.optimizer.betas = (0.99, 0.99)
    config.optimizer.weight_decay = 0.03
    config.ema.rate = 0.9999

    # The paper's DPM-Solver: third order, uniform in logSNR, 50 evaluations, from T = 1 to 1e-4.
    config.sample.solver = "dpmsolver"
    config.sample.method = "singlestep"
    config.sample.order = 3
    config.sample.steps = 50
    config.sample.spacing = "logsnr"
    config.sample.t_end = 1e-4

    # The paper's FID: 50,000 samples of the EMA weights; --config.evaluate.reference names the
    # statistics, and --config.sample.labels=data draws classes as often as the training set has
    # them, as the paper does.
    config.evaluate.features = "inception"
    config.evaluate.num_samples = 50_000
    return config
