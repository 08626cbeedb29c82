"""Deduplication of documents: exact duplicates by digest, near duplicates by MinHash."""
