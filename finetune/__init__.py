"""Instruct tuning of an exported model."""

from conf.quiet import quiet_torchao

quiet_torchao()  # before trl, which has peft import it
