"""Data for training: image sources, prepared data sets, and the pipeline to the devices."""
