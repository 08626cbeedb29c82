"""`python -m launch ui`: serves the page in the browser."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from conf.errors import InputError
from conf.gradio_page import check_installed, check_port, import_gradio, launch_page


@dataclass
class UiConfig:
    """A page to choose a recipe, plan, train on this machine, watch, and chat.

    It runs commands that can also be given in a terminal, and shows them.

    runs: the folder of runs.
    host, port: address of the page. A served model has its page at port + 1 and its endpoint at
        port + 2.
    share: makes a public link to the page with gradio. Everyone with the link can start commands
        on this machine.
    """

    runs: str = "runs"
    host: str = "127.0.0.1"
    port: int = 7850
    share: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.port < 65534:
            raise InputError(f"port={self.port}: expected 1 to 65533.")


def ui(config: UiConfig) -> None:
    """Serves the page until it is interrupted.

    The training runs that it started then continue, and a model that it serves is stopped.

    Raises:
        InputError: gradio is not installed, or the port is in use.
    """
    check_installed("ui", ["gradio"])
    check_port("port", config.port, config.host)
    import_gradio()
    from launch.ui.commands import BackgroundCommands
    from launch.ui.page import CHAT, CSS, build

    background = BackgroundCommands()
    page = build(Path(config.runs), background, config.host, config.port + 1)
    launch_page(page, config.host, config.port, config.share, CSS)
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    interrupted.wait()
    background.end(CHAT)
    page.close()
