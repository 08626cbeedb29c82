"""Keeps only documents in certain languages, which a fastText model identifies."""

from __future__ import annotations

from conf.errors import InputError
from data_pipeline.cleaning.chain import Step, Verdict
from data_pipeline.cleaning.config import CleaningConfig

LABEL = "__label__"


def make(config: CleaningConfig) -> Step:
    """Makes the step `language`. Raises InputError if the model is missing or lacks a language."""
    options = config.language
    if options.model is None:
        raise InputError(
            "corpus.cleaning.language.model=null: the step 'language' needs a fastText model. Give "
            "a file such as lid.176.bin, or remove the step."
        )
    import fasttext

    try:
        model = fasttext.load_model(options.model)
    except ValueError as error:
        raise InputError(
            f"corpus.cleaning.language.model={options.model}: not a fastText model ({error}). Give "
            "a file such as lid.176.bin."
        ) from None
    known = {label.removeprefix(LABEL) for label in model.get_labels()}
    for language in options.languages:
        if language not in known:
            raise InputError(
                f"corpus.cleaning.language.languages: '{language}' is not a label of the model. "
                f"Choose from {', '.join(sorted(known))}."
            )
    allowed = set(options.languages)

    def step(text: str) -> Verdict:
        found = model.f.predict(text.replace("\n", " ") + "\n", len(known), 0.0, "strict")
        probabilities = {label.removeprefix(LABEL): p for p, label in found}
        best = max((probabilities.get(language, 0.0) for language in allowed), default=0.0)
        if best >= options.threshold:
            return Verdict(text)
        language, p = max(probabilities.items(), key=lambda item: item[1], default=("none", 0.0))
        return Verdict(text, f"language_{language}", f"{language} {p:.2f}, best allowed {best:.2f}")

    return step
