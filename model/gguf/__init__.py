"""Writes GGUF files, which llama.cpp and the programs built on it load.

`metadata.py` writes the shape, `tensors.py` the weights and `vocabulary.py` the tokenizer of a
Hugging Face folder; `command.py` is `python -m model gguf`. What differs between families is in
their adapters, and in `model/families/gguf.py`.
"""
