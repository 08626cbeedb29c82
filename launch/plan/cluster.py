"""The cluster of a run: the schema and the reader of `conf/cluster/*.yaml`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.entry import CONF_DIR, sentence
from conf.errors import InputError, did_you_mean, one_of

FILE_ENDINGS = (".yaml", ".yml")
FP32_SLOWDOWN = 16
"""Speed of bf16 over that of fp32 (not TF32) if a file does not give fp32_tflops."""


@dataclass
class ClusterConfig:
    """A cluster of identical nodes with identical GPUs.

    gpu_memory_gib, memory_gb_s: size and bandwidth of the memory of one GPU.
    bf16_tflops, fp8_tflops: dense peak in the GPU's data sheet; 0 if the GPU does not multiply
        that type.
    fp32_tflops: dense peak in fp32; 0 for a sixteenth of the bf16 peak, as on A100 and H100.
    intra_node_gb_s, inter_node_gb_s: bandwidth at which each GPU can send within a node and
        between nodes.
    matmul, attention: fraction of the peak that matrix products and attention reach, as [typical,
        best known].
    fp8_gain, fp8_rowwise_gain: speedup of the matrix products of the blocks in fp8, including
        casts, as [typical, best known].
    gpu_hour_price, kwh_price: price of one GPU for an hour, and of one kWh, in `currency`.
    gpu_watts: power in watts of one GPU, including its share of the node.
    node_mttf_days: mean number of days between failures of a node.
    storage_gb_s: bandwidth in GB/s at which a node writes checkpoints.
    slurm: keys of `launch.slurm.settings.SlurmSettings`, for jobs.
    sky: keys of `launch.sky.settings.SkySettings`, for jobs on rented nodes.
    """

    name: str = MISSING
    gpu: str = MISSING
    nodes: int = 1
    gpus_per_node: int = 8
    device: str = "cuda"
    gpu_memory_gib: float = MISSING
    bf16_tflops: float = MISSING
    fp8_tflops: float = 0.0
    fp32_tflops: float = 0.0
    memory_gb_s: float = MISSING
    intra_node_gb_s: float = MISSING
    inter_node_gb_s: float = MISSING
    matmul: list[float] = field(default_factory=lambda: [0.5, 0.7])
    attention: list[float] = field(default_factory=lambda: [0.15, 0.35])
    fp8_gain: list[float] = field(default_factory=lambda: [1.2, 1.5])
    fp8_rowwise_gain: list[float] = field(default_factory=lambda: [0.85, 1.2])
    gpu_hour_price: float = 0.0
    currency: str = "USD"
    gpu_watts: float = 0.0
    kwh_price: float = 0.0
    node_mttf_days: float = 154.0
    storage_gb_s: float = 2.0
    slurm: dict[str, Any] = field(default_factory=dict)
    sky: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in (
            "nodes",
            "gpus_per_node",
            "gpu_memory_gib",
            "memory_gb_s",
            "intra_node_gb_s",
            "inter_node_gb_s",
            "node_mttf_days",
            "storage_gb_s",
        ):
            if not 0 < getattr(self, key) < math.inf:
                raise InputError(f"cluster.{key}={getattr(self, key)}: expected a number above 0.")
        for key in (
            *("bf16_tflops", "fp8_tflops", "fp32_tflops"),
            *("gpu_hour_price", "gpu_watts", "kwh_price"),
        ):
            if not 0 <= getattr(self, key) < math.inf:
                raise InputError(f"cluster.{key}={getattr(self, key)}: expected 0 or more.")
        if not self.bf16_tflops and not self.fp32_tflops:
            raise InputError(
                "cluster.bf16_tflops=0 cluster.fp32_tflops=0: expected a number above 0 for at "
                "least one of these keys. Give the peak TFLOP/s of the GPU."
            )
        one_of("cluster.device", self.device, ("cuda", "cpu"))
        for key in ("matmul", "attention", "fp8_gain", "fp8_rowwise_gain"):
            found = list(getattr(self, key))
            if len(found) != 2 or not 0 < found[0] <= found[1]:
                raise InputError(
                    f"cluster.{key}={found}: expected [typical, best] with 0 < typical <= best."
                )

    def peak_flops(self, precision: str) -> float:
        """Returns the peak FLOP/s of one GPU with which the speed in a precision is compared.

        fp8 is compared with the peak of bf16, so that the utilizations are comparable.
        """
        if precision == "fp32":
            return 1e12 * (self.fp32_tflops or self.bf16_tflops / FP32_SLOWDOWN)
        return 1e12 * self.bf16_tflops

    @property
    def world_size(self) -> int:
        """Returns the number of GPUs of all nodes."""
        return self.nodes * self.gpus_per_node


class TextLoader(yaml.SafeLoader):
    """A YAML loader that keeps every value except null as text, for a schema to convert.

    YAML itself would read 12:30:00 as a base-60 number, 0123 as an octal number and `no` as false.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_cluster_file(given: str) -> dict[str, Any]:
    """Returns the content of a cluster's file, given as a name in `conf/cluster` or as a path.

    Raises:
        InputError: the file is missing or not YAML, or holds an invalid key or value.
    """
    path = Path(given)
    if path.suffix not in FILE_ENDINGS:
        path = CONF_DIR / "cluster" / f"{given}.yaml"
    if not path.is_file():
        known = [found.stem for found in (CONF_DIR / "cluster").glob("*.yaml")]
        raise InputError(f"cluster={given}: {path} does not exist{did_you_mean(given, known)}.")
    try:
        with path.open() as file:
            content = yaml.load(file, Loader=TextLoader)
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected lines of key: value, as in {CONF_DIR}/cluster.")
        OmegaConf.merge(OmegaConf.structured(ClusterConfig), content)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML ({reason}). Correct the file.") from None
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {sentence(error, ClusterConfig)}") from None
    return content


def expand_cluster_file(arguments: list[str]) -> list[str]:
    """Returns the arguments with `cluster=my.yaml` replaced by the keys of that file.

    Hydra itself accepts only the name of a file in the group or a dictionary of keys.
    """
    found: list[str] = []
    for argument in arguments:
        key, _, path = argument.partition("=")
        if key != "cluster" or not path.endswith(FILE_ENDINGS):
            found.append(argument)
            continue
        content = read_cluster_file(path)
        pairs = {name: value for name, value in content.items() if name not in ("slurm", "sky")}
        inner = ",".join(f"{name}:{json.dumps(value)}" for name, value in pairs.items())
        found += ["~cluster", f"cluster={{{inner}}}"]
    return found
