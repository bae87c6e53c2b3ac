"""Data sets as others made them: folders of images, COCO, TFDS, the official features."""
