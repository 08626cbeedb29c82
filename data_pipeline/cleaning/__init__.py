"""Cleaning of documents: steps that drop documents or change their text, before deduplication."""
