"""Drops documents that a classifier rates as poor text.

The classifier is a small gradient-boosted model, which `python -m data_pipeline quality` trains
from examples, or a Hugging Face text classifier in a local folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.errors import InputError, did_you_mean, first_line
from data_pipeline.cleaning.chain import Step, Verdict
from data_pipeline.cleaning.config import CleaningConfig, QualityOptions

KEY = "corpus.cleaning.quality"


def make(config: CleaningConfig) -> Step:
    """Makes the step `quality`. Raises InputError if there is no valid model."""
    options = config.quality
    if options.model is None:
        raise InputError(
            f"{KEY}.model=null: the step 'quality' needs a model. Give a file that "
            "`python -m data_pipeline quality` wrote or the folder of a text classifier, or remove "
            "the step."
        )
    path = Path(options.model)
    score = _classifier(path, options) if path.is_dir() else _boosted(path)

    def step(text: str) -> Verdict:
        probability = score(text)
        if probability >= options.threshold:
            return Verdict(text)
        return Verdict(
            text, "low_quality", f"score {probability:.3f}, threshold {options.threshold:g}"
        )

    return step


def _boosted(path: Path) -> Any:
    from data_pipeline.cleaning.quality_model import QualityModel

    return QualityModel.load(path).score


def _classifier(path: Path, options: QualityOptions) -> Any:
    """Returns the scoring function of a Hugging Face classifier, loaded from safetensors."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{KEY}.model={path}: not a text classifier ({first_line(error)}). Give a Hugging Face "
            "folder of a text classifier."
        ) from None
    model.eval()
    labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
    label = options.label or labels[-1]
    if label not in labels:
        raise InputError(
            f"{KEY}.label={label}: not a label of the model{did_you_mean(label, labels)}."
        )
    good = labels.index(label)
    longest = int(getattr(model.config, "max_position_embeddings", 512))
    longest = min(longest, tokenizer.model_max_length)

    @torch.inference_mode()
    def score(text: str) -> float:
        inputs = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        if not inputs["input_ids"].numel():
            return 0.0
        return float(model(**inputs).logits[0].float().softmax(-1)[good])

    return score
