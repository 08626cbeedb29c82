"""`python -m eval.chat.llamacpp_server --model FILE ...`: llama-server from the package xllamacpp.

It knows the arguments of llama-server that Headwater gives.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import Any

from eval.chat.llamacpp import KEY_VARIABLE

SECONDS_BETWEEN_LOOKS = 0.5


def main() -> None:
    """Serves a file until this process or the one that started it ends."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = start(parse(sys.argv[1:]))
    print(f"listening on {server.listening_address}", flush=True)
    try:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        pass
    finally:
        os._exit(0)  # the server's threads would wait for requests that are in progress


def parse(arguments: list[str]) -> argparse.Namespace:
    """Returns the settings in a command line of llama-server."""
    parser = argparse.ArgumentParser(prog="eval.chat.llamacpp_server", allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--alias")
    parser.add_argument("--ctx-size", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--n-gpu-layers", type=int)
    parser.add_argument("--flash-attn", choices=("on", "off", "auto"), default="auto")
    parser.add_argument("--cache-type-k", choices=("f32", "f16", "bf16", "q8_0"))
    parser.add_argument("--cache-type-v", choices=("f32", "f16", "bf16", "q8_0"))
    parser.add_argument("--swa-full", action="store_true")
    return parser.parse_args(arguments)


def start(options: argparse.Namespace) -> Any:
    """Starts the server in threads of this process."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = options.model
    settings.hostnames, settings.port = [options.host], options.port
    settings.n_ctx, settings.n_parallel = options.ctx_size, options.parallel
    settings.warmup = settings.fit_params = False
    settings.use_jinja = True
    settings.swa_full = options.swa_full
    kind = xllamacpp.llama_flash_attn_type
    settings.flash_attn_type = getattr(kind, f"LLAMA_FLASH_ATTN_TYPE_{FLASH[options.flash_attn]}")
    for key in ("cache_type_k", "cache_type_v"):
        if name := getattr(options, key):
            setattr(settings, key, getattr(xllamacpp.ggml_type, f"GGML_TYPE_{name.upper()}"))
    if options.alias is not None:
        settings.model_alias = {options.alias}
    if options.n_gpu_layers is not None:
        settings.n_gpu_layers = options.n_gpu_layers
    if options.threads is not None:
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = options.threads
    if own_key := os.environ.get(KEY_VARIABLE):
        settings.api_keys = [own_key]
    return xllamacpp.Server(settings)


FLASH = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}

if __name__ == "__main__":
    main()
