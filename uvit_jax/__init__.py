"""U-ViT in JAX: prepare latents, train, sample and evaluate with one command each, on one core or a
pod slice.
"""
