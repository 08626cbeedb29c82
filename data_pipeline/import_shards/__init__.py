"""Import of Megatron shards: lists `.bin`/`.idx` pairs, adopts each, and writes a manifest."""
