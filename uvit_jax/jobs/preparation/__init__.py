"""The machinery of `prepare`: its plan, its examples, its shards."""
