"""Tests with a real vLLM, which `make test-serving` runs in an environment of its own."""
