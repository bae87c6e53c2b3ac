"""What a run tells people: metric files, progress, pictures, throughput and MFU."""
