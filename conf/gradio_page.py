"""Serves a gradio page, for `eval serve` and `launch ui`."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Sequence
from typing import Any

from conf.errors import InputError


def check_installed(command: str, packages: Sequence[str]) -> None:
    """Raises InputError if a package of the extra `chat` is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{command} needs packages that are not installed: {', '.join(missing)}. Run "
            'pip install -c constraints.txt -e ".[chat]".'
        )


def check_port(key: str, port: int, host: str = "") -> None:
    """Raises InputError if a port cannot be listened on, for example because it is in use.

    key: the setting that holds the port.
    host: the address to listen on, empty for all.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            where = f"host={host} {key}={port}" if host else f"{key}={port}"
            raise InputError(
                f"{where}: the server cannot listen there ({error.strerror}). Choose another {key}."
            ) from None


def import_gradio() -> Any:
    """Imports gradio with its analytics disabled."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    import gradio

    return gradio


def launch_page(page: Any, host: str, port: int, share: bool, css: str) -> None:
    """Starts serving a page in the background and prints its addresses.

    share: creates a public link through gradio.
    """
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        css=css,
    )
    print(f"page: http://localhost:{port}", flush=True)
    if page.share_url:
        print(f"public: {page.share_url}", flush=True)
