"""Instruction tuning of an exported model."""

from conf.terminal import silence_torchao

silence_torchao()  # before trl is imported, which makes peft import torchao
