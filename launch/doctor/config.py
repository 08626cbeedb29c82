"""Configuration of `python -m launch doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import one_of


@dataclass
class DoctorConfig:
    """Configuration of the report on this machine.

    device: the device of a run: cpu, cuda, or auto for the GPU if there is one.
    json: prints everything as JSON, for programs.
    measure: whether to measure the speed of matrix products.
    """

    device: str = "auto"
    json: bool = False
    measure: bool = True

    def __post_init__(self) -> None:
        one_of("device", self.device, ("auto", "cpu", "cuda"))
