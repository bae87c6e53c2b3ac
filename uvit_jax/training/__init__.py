"""State, step and loop of training, the optimizer, the EMA, and their checkpoints."""
