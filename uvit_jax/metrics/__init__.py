"""Numbers of how good samples are: features, distances and scores on streams."""
