"""The device mesh, the rules that place arrays on it, and the hosts that it spans."""
