"""`python -m launch ui`: serves the page."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from conf.errors import InputError
from conf.gradio_page import check_installed, check_port, import_gradio, launch_page


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
    check_installed("ui", ["gradio"])
    check_port("port", config.port, config.host)
    import_gradio()
    from launch.ui.commands import Started
    from launch.ui.page import CHAT, CSS, build

    started = Started()
    page = build(Path(config.runs), started, config.port + 1)
    launch_page(page, config.host, config.port, config.share, CSS)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    over.wait()
    started.end(CHAT)
    page.close()
