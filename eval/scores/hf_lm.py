"""lm-eval's own `hf` model, with requests that it cannot answer named."""

from __future__ import annotations

import lm_eval.models  # noqa: F401  (before anything else registers a model: it would hide these)
from lm_eval.models.huggingface import HFLM

from eval.tasks.checked_lm import CheckedLM


class CheckedHFLM(CheckedLM, HFLM):
    """A stock Hugging Face folder."""
