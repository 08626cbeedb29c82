"""Raw text to documents, tokenizer, shards, the order of samples, and batches."""
