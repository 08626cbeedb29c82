"""Runs this Python on a hollow GPU: `python -m tests.hollow -m pytest tests/hollow`.

The arguments are those of the interpreter, so `python -m tests.hollow script.py` and
`python -m tests.hollow -c "..."` work too. Needs a CUDA build of torch, gcc, and no GPU.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from tests.hollow import driver
from tests.hollow.build import build, has_cuda_build

DRIVER_FILE = Path("/dev/nvidiactl")


def environment(folder: Path) -> dict[str, str]:
    """Returns the variables that put a process on the hollow GPU whose library is in `folder`."""
    caches = folder.parent / "caches"
    return {
        "LD_PRELOAD": str(folder / "libcuda.so.1"),
        "LD_LIBRARY_PATH": os.pathsep.join(
            [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        ),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(caches / "triton")),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get(
            "TORCHINDUCTOR_CACHE_DIR", str(caches / "inductor")
        ),
        # A pool of compilers would import torch once per process, longer than it saves.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def check_no_real_gpu() -> None:
    """Ends the process where a real driver is, which the hollow one would hide."""
    found = DRIVER_FILE.exists()
    if not driver.active():
        try:
            ctypes.CDLL("libcuda.so.1")
            found = True
        except OSError:
            pass
    if found:
        raise SystemExit(
            "error: this machine has an NVIDIA driver. The hollow GPU would hide its GPUs, and a "
            "run would train on nothing. Run the tests of tests/gpu here."
        )


def main() -> None:
    """Replaces this process by the same interpreter on the hollow GPU."""
    check_no_real_gpu()
    if not has_cuda_build():
        raise SystemExit(
            "error: this torch is built for the CPU. Run `make rehearse`, which installs a CUDA "
            "build into an environment of its own."
        )
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], os.environ | environment(build()))


if __name__ == "__main__":
    main()
