"""Silences what torchao says when it is imported and its user can do nothing about."""

from __future__ import annotations

import logging


def quiet_torchao() -> None:
    """To be called before torchao is imported, by us or by a library (peft imports it where it
    finds it): its kernels for other machines that do not load here, and a deprecation inside it.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").addFilter(
        lambda record: "register_constant" not in record.getMessage()
    )
