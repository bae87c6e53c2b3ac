"""Networks whose weights are read and never trained: autoencoders, CLIP, Inception."""
