"""Networks that are only ever read: autoencoders, CLIP, Inception."""
