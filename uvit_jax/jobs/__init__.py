"""The jobs, one verb a file, each a recipe read from top to bottom."""
