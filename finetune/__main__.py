"""The command line `python -m finetune sft|dpo|show model=... data=... out=...`."""

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
        summary="tunes a chat model on pairs of a better and a worse answer, and merges adapters",
    ),
    "show": Command(
        config="show",
        schema="finetune.show:ShowConfig",
        run="finetune.show:show",
        summary="shows which tokens of an example are trained on and which are masked",
    ),
}

if __name__ == "__main__":
    main("finetune", COMMANDS)
