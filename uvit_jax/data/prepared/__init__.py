"""Data sets as `prepare` makes them: a manifest and shards of records."""
