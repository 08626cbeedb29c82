"""Import of Megatron shards: lists the pairs of files, adopts each, and writes a manifest."""
