"""The machinery of sampling: conditions, batches of images, the folder that they go to."""
