"""Sharding rules of a U-ViT's parameters, for `parallel.sharding`."""

# (pattern of a parameter's path, mesh axis that splits each of its dimensions); the first that
# matches holds. Tensor parallelism splits heads and the MLP's hidden channels, so a block needs two
# all-reduces: after the attention's projection and after fc2. Vectors stay whole.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attn/qkv/kernel$", ("fsdp", None, "tensor", None)),  # [d, 3, heads, head_dim]
    (r"attn/qkv/bias$", (None, "tensor", None)),  # [3, heads, head_dim]
    (r"attn/proj/kernel$", ("tensor", None, "fsdp")),  # [heads, head_dim, d]
    (r"mlp/fc1/kernel$", ("fsdp", "tensor")),  # [d, hidden]
    (r"mlp/fc1/bias$", ("tensor",)),
    (r"mlp/fc2/kernel$", ("tensor", "fsdp")),  # [hidden, d]
    (r"skip/kernel$", (None, "fsdp", "tensor")),  # [2, d, d]
    (r"(label_embed/embedding|pos_embed)$", (None, "fsdp")),  # [rows, d]
    (r"head/kernel$", ("fsdp", None)),  # [d, patch]
    (r"(conv_before|conv_after|stages/\d+)/kernel$", (None, None, None, "fsdp")),  # [3, 3, c, c]
    (r"(proj|modulation|context_embed|linear|fc1|fc2)/kernel$", (None, "fsdp")),  # [in, d]
)
