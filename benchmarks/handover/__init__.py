"""What the tools that users take an export to compute with it, against transformers 5."""
