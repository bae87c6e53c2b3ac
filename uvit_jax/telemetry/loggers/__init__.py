"""Loggers: where the numbers and pictures of a run go, beside `metrics.jsonl`."""
