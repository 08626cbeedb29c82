"""Builds the hollow GPU's library for the torch of this interpreter.

The functions of `library/*.c` are written by hand. torch's libraries need some 350 more of CUDA,
cuBLAS, cuDNN, NCCL and NVML, which are found among their undefined symbols; for each of them a
function that returns 0, which means success, is generated.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

SOURCES = Path(__file__).parent / "library"
TORCH_LIBRARIES = (
    "libtorch_cuda.so",
    "libc10_cuda.so",
    "libtorch_python.so",
    "libcaffe2_nvrtc.so",
    "libtorch_nvshmem.so",
    "libtorch_cuda_linalg.so",
)
ASKED_BY_NAME = {
    # found by dlsym: Triton's launcher and nvrtc
    "cuCtxSetCurrent",
    "cuCtxSetLimit",
    "cuDevicePrimaryCtxRelease",
    "cuFuncSetAttribute",
    "cuFuncSetCacheConfig",
    "cuInit",
    "cuKernelGetFunction",
    "cuLaunchKernelExC",
    "cuLibraryLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
}
ASKED_BY_NAME |= {
    # found in libnvidia-ml.so.1 by torch.cuda and the energy meter
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlInit",
    "nvmlInitWithFlags",
    "nvmlShutdown",
}
FAMILY = re.compile(r"(cuda[A-Z]|__cuda|cublas|nccl|cudnn|nvml|cu(?!File)[A-Z])\w*$")
DEFINED = re.compile(r"^[a-zA-Z].*?\b(\w+)\(", re.M)


def torch_folder() -> Path:
    """Returns the folder of the installed torch, without importing it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def has_cuda_build() -> bool:
    """Returns whether the installed torch is built with CUDA."""
    return (torch_folder() / "lib" / "libtorch_cuda.so").exists()


def needed_functions(torch: Path) -> set[str]:
    """Returns the functions that torch's libraries leave undefined or look up in the driver."""
    names = set(ASKED_BY_NAME)
    for library in TORCH_LIBRARIES:
        path = torch / "lib" / library
        if path.exists():
            command = ["nm", "-D", "--undefined-only", str(path)]
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            names |= {line.split()[-1].split("@")[0] for line in listed.splitlines()}
    header = (torch / "include/c10/cuda/driver_api.h").read_text()
    names |= set(re.findall(r"_\(((?:cu[A-Z]|nvml)\w+)[,)]", header))
    return {name for name in names if FAMILY.match(name)}


def include_folders(torch: Path) -> list[Path]:
    """Returns the folders that may hold cuda.h: NVIDIA's wheels, Triton's copy, and a toolkit.

    Triton's headers come last, because they may be those of an older CUDA than torch's.
    """
    folders = [*map(Path, [str(torch.parent), *sys.path])]
    wheels = ("nvidia/cu*/include", "triton/backends/nvidia/include")
    found = [path for pattern in wheels for folder in folders for path in folder.glob(pattern)]
    return [*found, Path("/usr/local/cuda/include")]


def build() -> Path:
    """Returns the folder of libcuda.so.1, building it if torch or the sources have changed."""
    torch = torch_folder()
    sources = sorted(SOURCES.iterdir())
    digest = hashlib.sha256(str(torch).encode() + (torch / "version.py").read_bytes())
    for path in (*sources, Path(__file__)):
        digest.update(path.read_bytes())
    folder = Path(sys.prefix) / "hollow" / digest.hexdigest()[:16]
    library = folder / "libcuda.so.1"
    if library.exists():
        return folder
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("error: the hollow GPU is written in C. Install gcc.")
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = {name for path in sources for name in DEFINED.findall(path.read_text())}
    rest = folder / "rest.c"
    generated = sorted(needed_functions(torch) - by_hand)
    rest.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in generated))
    made = folder / f"making-{os.getpid()}"
    subprocess.run(
        [
            *(compiler, "-O1", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"),
            *(f"-I{path}" for path in include_folders(torch) if path.is_dir()),
            *(str(path) for path in sources if path.suffix == ".c"),
            *(str(rest), "-o", str(made), "-ldl", "-lpthread"),
        ],
        check=True,
    )
    made.replace(library)
    with suppress(FileExistsError):  # the same library answers NVML, which is loaded by name
        (folder / "libnvidia-ml.so.1").symlink_to(library.name)
    return folder


if __name__ == "__main__":
    print(build(), f"for Python {sysconfig.get_python_version()}")
