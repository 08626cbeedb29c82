"""Detects which number formats this machine multiplies in hardware, and measures its speed.

`precision=auto` selects bf16 if the hardware multiplies it, else fp32. Hardware with bf16 is:

    CUDA       compute capability 8.0 or more (ROCm: if torch reports it)
    x86 CPU    AVX-512 BF16 or AMX-BF16; AVX-512 alone and AVX2 have no bf16 products
    Arm CPU    BF16 (Armv8.6 and later)

On a CPU, oneDNN computes the products, so its own switch applies too: ONEDNN_MAX_CPU_ISA=AVX2
keeps torch from using bf16 units, and `auto` then selects fp32. torch is imported only where it is
used, because most commands that import `conf` never need it.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FIRST_CAPABILITY = (8, 0)
"""Compute capability of the first NVIDIA GPUs that multiply bf16 (Ampere)."""
BF16_FEATURES = ("amx_bf16", "avx512_bf16", "sve_bf16", "svebf16", "bf16")
"""CPU features with bf16 products, under their names in torch and /proc/cpuinfo (x86 and Arm)."""
FP16_FEATURES = ("amx_fp16", "avx512_fp16")
ISA_SWITCHES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that limit oneDNN's instructions: the new name and the old one."""
ISA_WITHOUT_BF16 = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI"),
)
ISA_WITHOUT_FP16 = (*ISA_WITHOUT_BF16, "AVX512_CORE_BF16")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Torch's name of the dtype for each precision."""
SIZES = (128, 256, 512, 1024)
"""Sizes of the matrices that are multiplied to measure a CPU, as long as the products are fast."""
GPU_SIZE = 8192
PRODUCT_SECONDS, SIZE_SECONDS = 0.5, 0.2
"""Products that are expected to take longer than PRODUCT_SECONDS are skipped. Each size is repeated
for SIZE_SECONDS."""
MIN_REPEATS, MAX_REPEATS = 3, 20


@dataclass(frozen=True)
class Processor:
    """The properties of a device that determine the precision of a model on it.

    features: CPU features, under their names in torch and /proc/cpuinfo.
    isa_limit: name and value of oneDNN's switch, if it is set.
    onednn: whether this torch has oneDNN.
    capability: compute capability of a CUDA device.
    native_bf16: whether a ROCm device multiplies bf16 according to torch; None elsewhere.
    """

    device: str
    name: str
    features: frozenset[str] = frozenset()
    isa_limit: tuple[str, str] | None = None
    onednn: bool = True
    capability: tuple[int, int] | None = None
    native_bf16: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """Result of checking if a processor multiplies a dtype in hardware; the reason is a clause."""

    native: bool
    reason: str


@dataclass(frozen=True, order=True)
class Speed:
    """Measured speed of the product of two `size` x `size` matrices."""

    flops_per_second: float
    size: int


def processor(device: torch.device | str) -> Processor:
    """Returns the properties of a torch device."""
    import torch

    place = torch.device(device)
    if place.type == "cuda":
        native = None
        if torch.version.hip is not None:
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Processor(
            "cuda",
            torch.cuda.get_device_name(place),
            capability=torch.cuda.get_device_capability(place),
            native_bf16=native,
        )
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return Processor(
        "cpu",
        cpu_name(),
        cpu_features(capabilities, cpuinfo()),
        isa_limit(os.environ),
        torch.backends.mkldnn.is_available(),
    )


def bf16_verdict(found: Processor) -> Verdict:
    """Decides if bf16 matrices are multiplied in hardware, and gives the reason."""
    if found.device == "cuda":
        if found.native_bf16 is not None:
            does = "supports" if found.native_bf16 else "does not support"
            return Verdict(found.native_bf16, f"{found.name} {does} bf16 matrix products")
        assert found.capability is not None
        return Verdict(
            found.capability >= FIRST_CAPABILITY,
            f"{found.name} has compute capability {found.capability[0]}.{found.capability[1]}, "
            f"and bf16 needs {FIRST_CAPABILITY[0]}.{FIRST_CAPABILITY[1]} or higher",
        )
    return _cpu_verdict(found, "bf16", BF16_FEATURES, ISA_WITHOUT_BF16)


def fp16_verdict(found: Processor) -> Verdict:
    """Decides if fp16 matrices are multiplied in hardware, and gives the reason."""
    if found.device == "cuda":
        return Verdict(True, f"{found.name} supports fp16 matrix products")
    return _cpu_verdict(found, "fp16", FP16_FEATURES, ISA_WITHOUT_FP16)


def _cpu_verdict(
    found: Processor, kind: str, wanted: tuple[str, ...], limits: tuple[str, ...]
) -> Verdict:
    has = next((feature for feature in wanted if feature in found.features), None)
    if has is None:
        return Verdict(False, f"this CPU has no {kind} units ({_best_feature(found.features)})")
    if not found.onednn:
        return Verdict(False, f"this build of torch lacks oneDNN, which would use the CPU's {has}")
    if found.isa_limit is not None and found.isa_limit[1].upper() in limits:
        switch = "=".join(found.isa_limit)
        return Verdict(False, f"{switch} keeps torch from using the CPU's {has}")
    return Verdict(True, f"this CPU has {has}")


def fitting_precision(found: Processor) -> str:
    """Returns the precision that `auto` selects on a processor: bf16 or fp32."""
    return "bf16" if bf16_verdict(found).native else "fp32"


def fitting_dtype(stored: str, found: Processor) -> str:
    """Returns the dtype to compute in for weights that are stored in a given dtype.

    float32 replaces a 16-bit dtype that the processor does not multiply in hardware. It represents
    every value of both 16-bit dtypes.
    """
    verdicts = {"bfloat16": bf16_verdict, "float16": fp16_verdict}
    if stored in verdicts and not verdicts[stored](found).native:
        return "float32"
    return stored


def slow_warning(
    setting: str,
    dtype: str,
    found: Processor,
    advice: str,
    measure: Callable[[str], Speed] | None = None,
) -> str:
    """Returns a warning if the CPU has no units for a requested 16-bit dtype, else ''.

    Args:
        setting: the setting as it was given, such as `precision=bf16`.
        dtype: torch's name of the dtype.
        found: the processor.
        advice: the setting to recommend instead.
        measure: measures a dtype's speed for the factor in the warning; `matrix_speed` by default.
    """
    verdicts = {"bfloat16": bf16_verdict, "float16": fp16_verdict}
    if found.device != "cpu" or dtype not in verdicts or verdicts[dtype](found).native:
        return ""
    measured = measure or matrix_speed
    exact, slow = (measured(kind).flops_per_second for kind in ("float32", dtype))
    return (
        f"{setting}: {verdicts[dtype](found).reason}, so {dtype} matrix products are "
        f"{exact / slow:,.0f} times slower than in float32 (measured: {slow / 1e9:,.1f} versus "
        f"{exact / 1e9:,.0f} GFLOP/s). Set {advice}."
    )


@cache
def matrix_speed(dtype: str, device: torch.device | str = "cpu") -> Speed:
    """Measures the speed of a matrix product with this process's threads, once per process.

    A dtype without hardware support may be a thousand times slower than another. A CPU is therefore
    measured with increasing sizes, as long as a product takes less than PRODUCT_SECONDS.
    """
    import torch

    place = torch.device(device)
    kind = getattr(torch, dtype)

    def product(size: int) -> Callable[[], None]:
        a = torch.randn(size, size, device=place, dtype=kind)

        def multiply() -> None:
            a @ a
            if place.type == "cuda":
                torch.cuda.synchronize(place)

        return multiply

    sizes = (GPU_SIZE,) if place.type == "cuda" else SIZES
    return fastest(product, sizes, time.perf_counter)


def fastest(
    product: Callable[[int], Callable[[], None]],
    sizes: tuple[int, ...],
    clock: Callable[[], float],
) -> Speed:
    """Returns the best speed over the sizes whose product is expected to be fast enough.

    Each size counts with the shortest of several times. Several sizes are needed because, on a busy
    machine, threads that wait for each other stretch a product of microseconds to a time slice of
    the scheduler.

    Args:
        product: takes a size and returns a function that multiplies matrices of this size. The
            first call of that function also prepares kernels.
        sizes: matrix sizes in ascending order.
        clock: returns the time in seconds.
    """
    best = Speed(0.0, 0)
    for size in sizes:
        multiply = product(size)
        times: list[float] = []
        while len(times) < MIN_REPEATS or (len(times) < MAX_REPEATS and sum(times) < SIZE_SECONDS):
            started = clock()
            multiply()
            times.append(clock() - started)
        seconds = min(times)
        best = max(best, Speed(2 * size**3 / seconds, size))
        if seconds * 8 >= PRODUCT_SECONDS:  # twice the size is eight times the work
            break
    return best


def cpu_features(capabilities: Mapping[str, Any], cpuinfo_text: str) -> frozenset[str]:
    """Returns the CPU features from torch and /proc/cpuinfo; older torch versions report fewer."""
    found = {name for name, value in capabilities.items() if value is True}
    for line in cpuinfo_text.splitlines():
        key, _, values = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(found | set(values.split()))
    return frozenset(found)


def isa_limit(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Returns the name and value of oneDNN's switch, or None if it is not set."""
    for switch in ISA_SWITCHES:
        if environment.get(switch):
            return switch, environment[switch]
    return None


def cpuinfo() -> str:
    """Returns the text of /proc/cpuinfo, or '' if it does not exist."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def cpu_name() -> str:
    """Returns the model name of the CPU, or its architecture if the name is not known."""
    for line in cpuinfo().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Returns the versions of those packages that are installed, in the given order."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _best_feature(features: frozenset[str]) -> str:
    ordered = (("avx512_f", "AVX-512"), ("avx512f", "AVX-512"), ("avx2", "AVX2"), ("avx", "AVX"))
    names = [name for feature, name in ordered if feature in features]
    return f"{names[0]} at best" if names else platform.machine()
