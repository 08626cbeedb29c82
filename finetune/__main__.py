"""`python -m finetune sft model=... data=... out=...`."""

from conf.entry import Command, main

COMMANDS = {
    "sft": Command(
        config="sft",
        schema="finetune.config:SftConfig",
        run="finetune.sft:sft",
        summary="tunes an exported model on conversations; alone or under torchrun",
    ),
}

if __name__ == "__main__":
    main("finetune", COMMANDS)
