"""Conversion to and from the model families of Hugging Face."""
