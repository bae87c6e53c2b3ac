"""What a model learns from: sources of examples and the pipeline that feeds them to the devices."""
