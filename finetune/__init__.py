"""Tuning of a Hugging Face model on conversations (`sft`) or preference pairs (`dpo`)."""

from conf.terminal import silence_torchao

silence_torchao()  # before trl is imported, which makes peft import torchao
