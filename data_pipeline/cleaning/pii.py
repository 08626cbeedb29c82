"""Masks e-mail addresses and public IPv4 addresses, which are found with datatrove's patterns.

While datatrove rotates through several placeholders, this step always uses the same placeholder, so
that the result depends only on the text.
"""

from __future__ import annotations

import re
from functools import partial

from data_pipeline.cleaning.chain import Step, Verdict
from data_pipeline.cleaning.config import CleaningConfig
from data_pipeline.cleaning.words import silence_datatrove

LIKE_IP = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]")


def make(config: CleaningConfig) -> Step:
    """Makes the step `pii`, which replaces addresses with the options `email` and `ip`."""
    silence_datatrove()
    from datatrove.pipeline.formatters.pii import PIIFormatter, public_ip_validator

    options = config.pii
    formatter = PIIFormatter()
    email, ip = formatter.emails_replacer.regex, formatter.ip_replacer.regex
    is_public = partial(public_ip_validator, public_only=True)

    def step(text: str) -> Verdict:
        # Two fast checks make the slow patterns unnecessary for most documents.
        if options.email and "@" in text:
            text = email.sub(lambda match: options.email, text)
        if options.ip and LIKE_IP.search(text):
            text = ip.sub(
                lambda match: options.ip if is_public(match.group()) else match.group(), text
            )
        return Verdict(text)

    return step
