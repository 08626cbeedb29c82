"""`python -m launch ui`: serves the page."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from conf.errors import InputError


@dataclass
class UiConfig:
    """A page to choose a recipe, see its plan, train on this machine, watch it, and chat. It runs
    the commands of the terminal and shows them.

    runs: the folder of runs. host, port: where the page is; a served model is at port + 1 and its
    endpoint at port + 2.
    share: a public link to the page, made by gradio: whoever has it can start commands here.
    """

    runs: str = "runs"
    host: str = "127.0.0.1"
    port: int = 7850
    share: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.port < 65534:
            raise InputError(f"port={self.port}, expected 1 to 65533.")


def ui(config: UiConfig) -> None:
    """Serves until it is interrupted; runs that it started go on, a served model ends.

    Raises InputError where gradio is missing or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError(
            'ui needs gradio, which is not installed: pip install -c constraints.txt -e ".[chat]"'
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise InputError(
                f"host={config.host} port={config.port}: {error.strerror}; choose another."
            ) from None
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it reads it when imported
    from launch.ui.commands import Started
    from launch.ui.page import CHAT, CSS, build

    started = Started()
    page = build(Path(config.runs), started, config.port + 1)
    page.launch(
        server_name=config.host,
        server_port=config.port,
        share=config.share,
        prevent_thread_lock=True,
        quiet=True,
        css=CSS,
    )
    print(f"page: http://localhost:{config.port}", flush=True)
    if page.share_url:
        print(f"public: {page.share_url}", flush=True)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    over.wait()
    started.end(CHAT)
    page.close()
