"""Keeps documents of some languages, as a fastText model tells them."""

from __future__ import annotations

from conf.errors import InputError
from data_pipeline.cleaning.chain import Step, Verdict
from data_pipeline.cleaning.config import CleaningConfig

LABEL = "__label__"


def make(config: CleaningConfig) -> Step:
    """Raises InputError where no model is named, or it is none of fastText or lacks a language."""
    options = config.language
    if options.model is None:
        raise InputError(
            "corpus.cleaning.language.model=null, expected a fastText file such as lid.176.bin: "
            "name one, or leave the step 'language' out."
        )
    import fasttext

    try:
        model = fasttext.load_model(options.model)
    except ValueError as error:
        raise InputError(
            f"corpus.cleaning.language.model={options.model} is no fastText model ({error})."
        ) from None
    known = {label.removeprefix(LABEL) for label in model.get_labels()}
    for language in options.languages:
        if language not in known:
            raise InputError(
                f"corpus.cleaning.language.languages: the model does not know '{language}', it "
                f"knows {', '.join(sorted(known))}."
            )
    wanted = set(options.languages)

    def step(text: str) -> Verdict:
        found = model.f.predict(text.replace("\n", " ") + "\n", len(known), 0.0, "strict")
        shares = {label.removeprefix(LABEL): share for share, label in found}
        best = max((shares.get(language, 0.0) for language in wanted), default=0.0)
        if best >= options.threshold:
            return Verdict(text)
        language, share = max(shares.items(), key=lambda item: item[1], default=("none", 0.0))
        return Verdict(text, f"language_{language}", f"{language} {share:.2f}, wanted {best:.2f}")

    return step
