"""What changes while a model learns: state, step, optimizer, EMA, and how they are kept on disk."""
