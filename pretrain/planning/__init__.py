"""Plans of memory, layouts and batches, made before anything is allocated."""
