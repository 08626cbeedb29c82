"""Instruct tuning of an exported model."""

from conf.terminal import silence_torchao

silence_torchao()  # before trl, which has peft import it
