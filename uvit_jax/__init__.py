"""U-ViT in JAX: prepare, train, sample and evaluate with one command each, from core to pod."""
