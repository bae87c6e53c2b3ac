"""Shared by the jobs: the config, the workdir, and the model assembled from them."""
