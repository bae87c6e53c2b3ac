"""What is memory traffic around the matrix products, fused into few passes, forward and backward, in XLA and Triton."""
