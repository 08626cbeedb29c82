"""What `python -m launch doctor` may be told."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import one_of


@dataclass
class DoctorConfig:
    """device: what a run would be on, auto for the GPU where there is one.

    json: prints everything as JSON, for programs.
    measure: false leaves out the speed of matrix products, the only part that computes.
    """

    device: str = "auto"
    json: bool = False
    measure: bool = True

    def __post_init__(self) -> None:
        one_of("device", self.device, ("auto", "cpu", "cuda"))
