"""U-ViT once more, in NumPy and float64, from the paper's formulas."""

import jax
import numpy as np
from scipy.special import erf


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def conv(p, x, stride=1):
    h, w = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [
        x[:, i : i + h : stride, j : j + w : stride] @ p["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    ]
    return sum(taps) + p["bias"]


def layer_norm(p, x, time):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    if "modulation" not in p:
        return x * p["norm"]["scale"] + p["norm"]["bias"]
    y = dense(p["modulation"], time)[:, None]
    d = x.shape[-1]
    y_s, y_b = 1 + y[..., :d], y[..., d:]
    return y_s * x + y_b


def attention(p, x):
    q, k, v = np.moveaxis(
        np.einsum("btd,dche->btche", x, p["qkv"]["kernel"]) + p["qkv"].get("bias", 0), 2, 0
    )
    scores = np.exp(np.einsum("bqhe,bkhe->bhqk", q, k) * q.shape[-1] ** -0.5)
    out = np.einsum("bhqk,bkhe->bqhe", scores / scores.sum(-1, keepdims=True), v)
    return np.einsum("bqhe,hed->bqd", out, p["proj"]["kernel"]) + p["proj"]["bias"]


def block(p, x, time, kind=None, skip=None):
    match kind:
        case "concat":
            x = (
                np.concatenate([x, skip], -1) @ p["skip"]["kernel"].reshape(-1, x.shape[-1])
                + p["skip"]["bias"]
            )
        case "add_then_linear":
            x = dense(p["skip"]["linear"], x + skip)
        case "linear_then_add":
            x = x + dense(p["skip"]["linear"], skip)
        case "add":
            x = x + skip
    x = x + attention(p["attn"], layer_norm(p["norm1"], x, time))
    h = dense(p["mlp"]["fc1"], layer_norm(p["norm2"], x, time))
    return x + dense(p["mlp"]["fc2"], 0.5 * h * (1 + erf(h / np.sqrt(2))))


def sinusoid(config, t):
    frequencies = np.exp(-np.log(10000) * np.arange(config.embed_dim / 2) / (config.embed_dim / 2))
    return np.concatenate([np.cos(np.outer(t, frequencies)), np.sin(np.outer(t, frequencies))], -1)


def embed_patches(config, p, x):
    if config.patch_embed == "conv_stack":
        for stage in range(len(p["stages"])):
            x = np.maximum(
                conv(p["stages"][stage], x, stride=1 if config.patch_size == 1 else 2), 0
            )
        return dense(p["proj"], x.reshape(len(x), -1, x.shape[-1]))
    s, (rows, columns) = config.patch_size, config.grid
    patches = [
        x[:, r * s : (r + 1) * s, c * s : (c + 1) * s] for r in range(rows) for c in range(columns)
    ]
    return dense(p["proj"], np.stack([patch.reshape(len(x), -1) for patch in patches], 1))


def positions(config, p):
    if config.pos_embed == "learned":
        return p["pos_embed"]
    quarter = config.embed_dim // 4
    table = np.zeros((config.num_tokens, config.embed_dim))
    for i in range(config.grid[0] * config.grid[1]):
        for j, place in enumerate(divmod(i, config.grid[1])):
            angles = place / 10000 ** (np.arange(quarter) / quarter)
            row = table[config.num_tokens - config.grid[0] * config.grid[1] + i]
            row[2 * j * quarter : 2 * (j + 1) * quarter] = np.concatenate(
                [np.sin(angles), np.cos(angles)]
            )
    return table


def reference(tiny):
    config, p = tiny.config, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tiny.params)
    time = sinusoid(config, tiny.t)
    if config.time_mlp:
        h = dense(p["time_mlp"]["fc1"], time)
        time = dense(p["time_mlp"]["fc2"], h / (1 + np.exp(-h)))
    tokens = [embed_patches(config, p["patch_embed"], tiny.x.astype(np.float64))]
    if config.context_dim:
        tokens.insert(0, dense(p["context_embed"], tiny.condition["context"]))
    if config.time == "token":
        tokens.insert(0, time[:, None])
    if config.num_classes:
        tokens.insert(0, p["label_embed"]["embedding"][tiny.condition["label"]][:, None])
    h = np.concatenate(tokens, 1) + positions(config, p)
    skips = []
    for i in range(config.depth // 2):
        h = block(p["in_blocks"][i], h, time)
        skips.append(h)
    h = block(p["mid_block"], h, time)
    for i in range(config.depth // 2):
        h = block(p["out_blocks"][i], h, time, config.skip, skips.pop())
    s, (rows, columns) = config.patch_size, config.grid
    h = layer_norm(p["norm"], h, time)[:, -rows * columns :]
    if config.conv == "before":
        h = conv(p["conv_before"], h.reshape(len(h), rows, columns, -1)).reshape(h.shape)
    h, image = dense(p["head"], h), np.zeros(tiny.x.shape)
    for i in range(rows * columns):
        r, c = divmod(i, columns)
        image[:, r * s : (r + 1) * s, c * s : (c + 1) * s] = h[:, i].reshape(
            -1, s, s, config.in_channels
        )
    return conv(p["conv_after"], image) if config.conv == "after" else image
