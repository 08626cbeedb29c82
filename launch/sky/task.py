"""The task that SkyPilot starts, as the content of its YAML file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from conf.errors import EXIT_REQUEUE
from launch.sky.settings import SkyCluster, SkyConfig
from launch.training import Training

PORT = 29500
INSTALL = (
    "python3 -m venv ~/headwater",
    "~/headwater/bin/pip install --quiet -c constraints.txt torch -e '.[fp8,s3]'",
)
"""The default of `sky.setup`. pip picks the build of torch that fits the node."""
INSTALLED = "~/headwater/bin/python"


def task(config: SkyConfig, cluster: SkyCluster, run: Training) -> dict[str, Any]:
    """Returns the task of a training run.

    The job starts again on EXIT_REQUEUE alone, with which `launch.sky.ended` answers everything
    that a new start can mend, and whenever SkyPilot loses a node.
    """
    sky = cluster.sky
    recovery = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [EXIT_REQUEUE]}
    resources = {
        "infra": sky.infra,
        "accelerators": sky.accelerators,
        "cpus": sky.cpus,
        "memory": sky.memory,
        "use_spot": sky.use_spot or None,
        "image_id": sky.image,
        "disk_size": sky.disk_gb,
        "job_recovery": recovery,
    }
    content = {
        "name": run.name,
        "workdir": str(code_of(run)),
        "num_nodes": config.nodes,
        "resources": {key: value for key, value in resources.items() if value is not None},
        "file_mounts": dict(sky.file_mounts),
        "volumes": dict(sky.volumes),
        "envs": {key: str(value) for key, value in sky.env.items()},
        "secrets": dict.fromkeys(sky.secrets, ""),
        "setup": "\n".join(["set -e", "cd ~/sky_workdir", *(sky.setup or INSTALL)]) + "\n",
        "run": run_script(config, cluster, run),
    }
    return {key: value for key, value in content.items() if value}


def as_yaml(content: dict[str, Any], title: str) -> str:
    """Returns the text of the task's file, with scripts as blocks."""

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    body = yaml.dump(content, Dumper=Dumper, sort_keys=False, width=1000)
    about = "Written by `python -m launch sky`; you can edit it and launch it again with `sky jobs"
    return f"# {title}\n# {about} launch`.\n{body}"


def run_script(config: SkyConfig, cluster: SkyCluster, run: Training) -> str:
    """Returns the script that each node executes."""
    sky = cluster.sky
    copy_to = run.settings().checkpoint.copy_to
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("run.sh.j2").render(
        threads=1 if cluster.device == "cuda" else 2,
        run_dir=shlex.quote(str(run.run_dir)),
        python=sky.python or ("python3" if sky.setup else INSTALLED),
        nproc=config.nproc or cluster.gpus_per_node,
        port=PORT,
        overrides=shlex.join(run.overrides),
        max_attempts=sky.max_attempts,
        copy_to="" if copy_to is None else f" {shlex.quote(copy_to)}",
    )


def code_of(run: Training) -> Path:
    """Returns the folder of the copy of the code, which SkyPilot copies to the nodes."""
    return folder_of(run) / "code"


def folder_of(run: Training) -> Path:
    """Returns the folder of a job on this machine: `sky` of the run folder.

    A run folder in a volume is a path of the nodes; runs/NAME stands for it here.
    """
    local = Path("runs") / run.name if run.run_dir.is_absolute() else run.run_dir
    return (local / "sky").absolute()
