"""The machinery of evaluation: streams of images, feature networks, references, reports."""
