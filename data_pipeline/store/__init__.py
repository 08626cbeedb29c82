"""Shards and their manifest: written, read, fetched and checked."""
