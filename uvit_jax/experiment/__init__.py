"""What the jobs share: the config, the workdir, and what is assembled from them."""
