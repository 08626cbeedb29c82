"""Compares the final loss of a run with the forecast that a study made before it."""

from __future__ import annotations

from typing import Any

from eval.report.run_folder import RunFolder

TOKENS_TOLERANCE = 0.02
"""Relative difference of the tokens up to which a run is the one that was forecast."""


def forecast_check(run: RunFolder) -> dict[str, Any] | None:
    """Returns a sentence, and whether the loss is as forecast; None without a forecast.

    The sentence of a run in progress has no loss yet, and that of another model or number of tokens
    says that the two cannot be compared.
    """
    forecast = run.env.get("forecast")
    if not forecast:
        return None
    planned = sum(stage["tokens"] for stage in run.config["recipe"]["stages"].values())
    loss = forecast["loss"]
    expected = (
        f"A ladder forecast a held-out loss of {loss['value']:.3f} nats per token "
        f"({forecast['level']:.0%} interval {loss['low']:.3f} to {loss['high']:.3f})"
    )
    shape = (forecast["hidden_size"], forecast["num_layers"])
    same_model = shape == (run.model.hidden_size, run.model.num_layers)
    if not same_model or abs(planned / forecast["tokens"] - 1) > TOKENS_TOLERANCE:
        text = (
            f"{expected} for {shape[1]} layers of {shape[0]} and {forecast['tokens']:,} tokens, "
            f"which is another run than this one of {planned:,} tokens."
        )
        return {"text": text, "agrees": False}
    if not run.is_finished or not run.validation:
        return {"text": f"{expected}.", "agrees": True}
    last = run.validation[-1]
    inside = loss["low"] <= last["loss"] <= loss["high"]
    parts = [
        f"{source} {found['bits_per_byte']['value']:.3f} forecast, "
        f"{last['sources'][source]['bits_per_byte']:.3f} reached"
        for source, found in forecast["sources"].items()
        if "bits_per_byte" in found and source in last["sources"]
    ]
    text = (
        f"{expected}. The run reached {last['loss']:.3f}, {'inside' if inside else 'outside'} the "
        f"interval; the forecast is off by {loss['value'] / last['loss'] - 1:+.1%}."
    )
    if parts:
        text += f" In bits per byte: {'; '.join(parts)}."
    return {"text": text, "agrees": inside}
