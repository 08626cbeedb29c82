"""Cleaning of documents: filters and changes of their text, before deduplication."""
