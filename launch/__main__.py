"""The command line `python -m launch COMMAND key=value ... [-- key=value ... of pretrain]`."""

import sys

from conf.entry import Command, main
from conf.errors import InputError
from launch.plan.cluster import expand_cluster_file
from launch.training import take_overrides

COMMANDS = {
    "demo": Command(
        config="demo",
        schema="launch.pipeline:PipelineConfig",
        run="launch.demo:demo",
        summary="runs all stages on this machine: raw text to an evaluated chat model",
    ),
    "plan": Command(
        config="plan",
        schema="launch.plan.config:PlanConfig",
        run="launch.plan.show:plan",
        complete="pretrain.model_choice:take_model",
        summary="plans a run: layouts, memory, days, cost",
    ),
    "local": Command(
        config="local",
        schema="launch.local:LocalConfig",
        run="launch.local:local",
        summary="trains on this machine under torchrun: local nproc=8 -- model=... data.folder=...",
    ),
    "slurm": Command(
        config="slurm",
        schema="launch.slurm.settings:SlurmConfig",
        run="launch.slurm.submit:slurm",
        choices=("cluster",),
        extra_help_schema="launch.slurm.settings:SlurmSettings",
        summary="trains as a SLURM job: slurm cluster=my.yaml nodes=4 -- model=... data.folder=...",
    ),
    "sky": Command(
        config="sky",
        schema="launch.sky.settings:SkyConfig",
        run="launch.sky.submit:sky",
        choices=("cluster",),
        extra_help_schema="launch.sky.settings:SkySettings",
        summary="trains on rented nodes by SkyPilot: sky cluster=my.yaml nodes=4 -- model=...",
    ),
    "chain": Command(
        config="chain",
        schema="launch.slurm.chain:ChainConfig",
        run="launch.slurm.chain:chain",
        choices=("cluster", "corpus", "tokenizer", "tasks"),
        summary="runs all stages as SLURM jobs, each after the previous one",
    ),
    "study": Command(
        config="study",
        schema="launch.studies.config:StudyConfig",
        run="launch.studies.command:study",
        base="launch.studies.config:take_file",
        choices=("cluster", "study"),
        summary="answers a question with a set of runs: study study=grid out=... -- model=...",
    ),
    "status": Command(
        config="status",
        schema="launch.slurm.manage:StatusConfig",
        run="launch.slurm.manage:status",
        summary="shows runs and their jobs: step, loss, tokens/s, time left, restarts, log",
    ),
    "stop": Command(
        config="stop",
        schema="launch.slurm.manage:StopConfig",
        run="launch.slurm.manage:stop",
        summary="ends a run gracefully: stop run=runs/x saves a checkpoint and stays stopped",
    ),
    "doctor": Command(
        config="doctor",
        schema="launch.doctor.config:DoctorConfig",
        run="launch.doctor.command:doctor",
        summary="shows the defaults on this machine with reasons, and missing packages",
    ),
    "ui": Command(
        config="ui",
        schema="launch.ui.serve:UiConfig",
        run="launch.ui.serve:ui",
        summary="serves a page in the browser: choose a recipe, plan, train, watch, chat",
    ),
}

if __name__ == "__main__":
    try:
        take_overrides()
        if sys.argv[1:2] == ["plan"]:
            sys.argv[2:] = expand_cluster_file(sys.argv[2:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    main("launch", COMMANDS)
