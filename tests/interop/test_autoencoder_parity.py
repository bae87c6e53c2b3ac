"""Published autoencoders as diffusers writes them, against diffusers."""

import jax
import numpy as np
import pytest

from tests.reference_weights import draw, formula_weight, nhwc, read_golden
from uvit_jax.interop.autoencoder import open_autoencoder

pytestmark = pytest.mark.torch

KL = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
}
TINY = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def make(torch, name, options):
    """An autoencoder of diffusers with the formula's weights."""
    diffusers = pytest.importorskip("diffusers")
    model = getattr(diffusers, name)(**options)
    weights = {
        key: torch.from_numpy(formula_weight(key, tuple(t.shape)))
        for key, t in model.state_dict().items()
    }
    model.load_state_dict(weights)
    return model.eval()


def check_parity(torch, model, folder, factor):
    """Checks that the folder's network encodes and decodes as diffusers' does; returns it."""
    x = np.tanh(draw("x", (2, 3, 4 * factor, 6 * factor)))
    z = draw("z", (2, model.config.latent_channels, 4, 6))
    with torch.no_grad():
        encoded = model.encode(torch.from_numpy(x))
        expected = (
            encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.parameters
        )
        image = model.decode(torch.from_numpy(z)).sample.numpy()
    autoencoder = open_autoencoder(str(folder))
    ours = jax.jit(autoencoder.encode)(autoencoder.params, nhwc(x))
    np.testing.assert_allclose(ours, nhwc(expected.numpy()), atol=1e-4, rtol=0)
    # The formula's tiny decoder makes values up to 30: float32's rounding is a part of those.
    ours = jax.jit(autoencoder.decode)(autoencoder.params, nhwc(z))
    np.testing.assert_allclose(
        ours, nhwc(image), atol=max(1e-4, 1e-5 * np.abs(image).max()), rtol=0
    )
    return autoencoder


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize(
    "options",
    [
        {"scaling_factor": 0.13025},
        {
            "latent_channels": 16,
            "shift_factor": 0.0609,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        {"mid_block_add_attention": False, "block_out_channels": (32, 32, 64)},
    ],
    ids=["xl", "sd3", "no_attention"],
)
def test_a_kl_autoencoder_of_diffusers_opens_from_its_folder(torch, tmp_path, options, safe):
    model = make(torch, "AutoencoderKL", KL | options)
    model.save_pretrained(tmp_path, safe_serialization=safe)
    assert sorted(tmp_path.glob("*.bin")) == (
        [] if safe else [tmp_path / "diffusion_pytorch_model.bin"]
    )
    autoencoder = check_parity(torch, model, tmp_path, factor=4)
    assert autoencoder.scale == options.get("scaling_factor", 0.18215)
    assert autoencoder.shift == options.get("shift_factor", 0.0)


@pytest.mark.parametrize("z", [4, 16])
def test_a_tiny_autoencoder_of_diffusers_opens_from_its_folder(torch, tmp_path, z):
    model = make(torch, "AutoencoderTiny", TINY | {"latent_channels": z})
    model.save_pretrained(tmp_path / "vae")
    assert check_parity(torch, model, tmp_path, factor=8).scale is None


def test_the_golden_numbers_of_the_tiny_family_are_diffusers(torch, golden_dir):
    golden, _ = read_golden(golden_dir / "taesd.safetensors")
    model = make(torch, "AutoencoderTiny", TINY)
    with torch.no_grad():
        latents = model.encode(torch.from_numpy(golden["input.x"])).latents
        image = model.decode(torch.from_numpy(golden["input.z"])).sample
    np.testing.assert_allclose(latents, golden["latents"], atol=1e-5)
    np.testing.assert_allclose(
        image, golden["decoded"], atol=1e-5 * np.abs(golden["decoded"]).max()
    )
