"""Plans the preparation of a corpus from a sample of its text: time, memory, disk, jobs."""
