"""Tokenization: documents to token ids, packed sequences and Megatron-core shards."""
