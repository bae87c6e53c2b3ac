"""Output of a run for people: metric files, progress, pictures, throughput and MFU."""
