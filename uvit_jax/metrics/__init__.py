"""Numbers that say how good samples are: features, distances and scores on streams."""
