"""From text to tokenized shards."""
