"""The job `prepare`'s rooms: its plan, its examples, its shards and the notes it resumes from."""
