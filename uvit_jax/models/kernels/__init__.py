"""What hardware makes of a norm, a GELU, an attention, a matrix product."""
