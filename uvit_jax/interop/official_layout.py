"""The layout of the official U-ViT (github.com/baofff/U-ViT) as a table of its arrays."""

from uvit_jax.errors import UserError
from uvit_jax.interop.layout import Entry, Layout, convolution, linear, norm, vector
from uvit_jax.interop.state_dict import KeyPath
from uvit_jax.models.uvit_config import UViTConfig

# The architectures that the official code can express, by the config's fields.
_EXPRESSED = {
    "skip": ("concat", "none"),
    "time": ("token",),
    "conv": ("after", "none"),
    "patch_embed": ("linear",),
    "pos_embed": ("learned",),
}


def uvit_layout(config: UViTConfig) -> Layout:
    """Every array of the official network, in the order of its state dict.

    Raises:
      UserError: for a config with an ablation that has no official layout.
    """
    _check_expressed(config)
    d, skip = config.embed_dim, config.skip == "concat"
    layout = _embeddings(config)
    for i in range(config.depth // 2):
        layout |= _block(f"in_blocks.{i}", ("in_blocks", i), config)
    layout |= _block("mid_block", ("mid_block",), config)
    for i in range(config.depth // 2):
        layout |= _block(f"out_blocks.{i}", ("out_blocks", i), config)
        layout |= _skip(f"out_blocks.{i}.skip_linear", ("out_blocks", i, "skip"), d) if skip else {}
    layout |= norm("norm", ("norm", "norm"), d)
    layout |= linear("decoder_pred", ("head",), d, config.patch_size**2 * config.in_channels)
    if config.conv == "after":
        channels = config.in_channels
        layout |= convolution("final_layer", ("conv_after",), channels, channels)
    return layout


def _check_expressed(config: UViTConfig) -> None:
    for field, known in _EXPRESSED.items():
        if getattr(config, field) not in known:
            raise UserError(
                f"{field} is {getattr(config, field)!r}, which the official checkpoints don't "
                f"have: expected {' or '.join(map(repr, known))}"
            )


def _embeddings(config: UViTConfig) -> Layout:
    d, p, c = config.embed_dim, config.patch_size, config.in_channels
    layout: Layout = {
        "pos_embed": Entry(
            ("pos_embed",), (1, config.num_tokens, d), lambda a: a[0], lambda a: a[None]
        ),
        "patch_embed.proj.weight": Entry(
            ("patch_embed", "proj", "kernel"),
            (d, c, p, p),
            lambda a: a.transpose(2, 3, 1, 0).reshape(p * p * c, d),
            lambda a: a.reshape(p, p, c, d).transpose(3, 2, 0, 1),
        ),
        **vector("patch_embed.proj.bias", ("patch_embed", "proj", "bias"), d),
    }
    if config.time_mlp:
        layout |= linear("time_embed.0", ("time_mlp", "fc1"), d, 4 * d)
        layout |= linear("time_embed.2", ("time_mlp", "fc2"), 4 * d, d)
    if config.num_classes:
        layout["label_emb.weight"] = Entry(("label_embed", "embedding"), (config.num_classes, d))
    if config.context_dim:
        layout |= linear("context_embed", ("context_embed",), config.context_dim, d)
    return layout


def _block(name: str, path: KeyPath, config: UViTConfig) -> Layout:
    d, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
    return {
        **norm(f"{name}.norm1", (*path, "norm1", "norm"), d),
        **_attention(f"{name}.attn", (*path, "attn"), config),
        **norm(f"{name}.norm2", (*path, "norm2", "norm"), d),
        **linear(f"{name}.mlp.fc1", (*path, "mlp", "fc1"), d, hidden),
        **linear(f"{name}.mlp.fc2", (*path, "mlp", "fc2"), hidden, d),
    }


def _attention(name: str, path: KeyPath, config: UViTConfig) -> Layout:
    """q, k and v as one product of `3 * d` there, of `[3, heads, head_dim]` here."""
    d, h = config.embed_dim, config.num_heads
    k = d // h
    layout = {
        f"{name}.qkv.weight": Entry(
            (*path, "qkv", "kernel"),
            (3 * d, d),
            lambda a: a.T.reshape(d, 3, h, k),
            lambda a: a.reshape(d, 3 * d).T,
        )
    }
    if config.qkv_bias:
        layout[f"{name}.qkv.bias"] = Entry(
            (*path, "qkv", "bias"),
            (3 * d,),
            lambda a: a.reshape(3, h, k),
            lambda a: a.reshape(3 * d),
        )
    layout[f"{name}.proj.weight"] = Entry(
        (*path, "proj", "kernel"),
        (d, d),
        lambda a: a.T.reshape(h, k, d),
        lambda a: a.reshape(d, d).T,
    )
    return layout | vector(f"{name}.proj.bias", (*path, "proj", "bias"), d)


def _skip(name: str, path: KeyPath, d: int) -> Layout:
    """The Linear of a long skip, on `[x, skip]` there, on its two halves here."""
    weight = Entry(
        (*path, "kernel"),
        (d, 2 * d),
        lambda a: a.T.reshape(2, d, d),
        lambda a: a.reshape(2 * d, d).T,
    )
    return {f"{name}.weight": weight, **vector(f"{name}.bias", (*path, "bias"), d)}
