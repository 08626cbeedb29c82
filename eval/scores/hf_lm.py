"""lm-eval's own `hf` model, with its requests checked first."""

from __future__ import annotations

import lm_eval.models  # noqa: F401  (must come first: registering another model hides the built-in ones)
from lm_eval.models.huggingface import HFLM

from eval.tasks.checked_lm import CheckedLM


class CheckedHFLM(CheckedLM, HFLM):
    """A stock Hugging Face model whose errors name the requests that it cannot answer."""
