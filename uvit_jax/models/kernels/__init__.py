"""Kernels for norms, GELU, attention and matrix products, and the blocks made of them."""
