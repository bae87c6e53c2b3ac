"""The machinery of evaluation: image streams, feature networks, references, reports."""
