"""`python -m finetune sft|dpo model=... data=... out=...`."""

from conf.entry import Command, main

COMMANDS = {
    "sft": Command(
        config="sft",
        schema="finetune.config:SftConfig",
        run="finetune.sft:sft",
        summary="tunes an exported model on conversations; alone or under torchrun",
    ),
    "dpo": Command(
        config="dpo",
        schema="finetune.config:DpoConfig",
        run="finetune.dpo:dpo",
        summary="tunes a chat model on pairs of a better and a worse answer; adapters are merged",
    ),
}

if __name__ == "__main__":
    main("finetune", COMMANDS)
