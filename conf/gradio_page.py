"""Serves a gradio page, for `eval serve` and `launch ui`."""

from __future__ import annotations

import importlib.util
import os
import secrets
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
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            where = f"host={host} {key}={port}" if host else f"{key}={port}"
            raise InputError(
                f"{where}: the server cannot listen there ({error.strerror}). Choose another {key}."
            ) from None


def local_address(host: str, port: int) -> str:
    """Returns the address under which this machine reaches a server that listens on `host`."""
    reached = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1") else host
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"


def import_gradio() -> Any:
    """Imports gradio with its analytics disabled."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    import gradio

    return gradio


def launch_page(
    page: Any, host: str, port: int, share: bool, css: str, password: str | None = None
) -> None:
    """Starts serving a page in the background and prints its addresses.

    share: creates a public link through gradio.
    password: password that visitors must give, with any user name; None for none.
    """

    def is_known(user: str, given: str) -> bool:
        return secrets.compare_digest(given.encode(), str(password).encode())

    page.launch(
        auth=None if password is None else is_known,
        auth_message="The password is the api_key of the endpoint, with any user name.",
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        css=css,
    )
    print(f"page: {local_address(host, port)}", flush=True)
    if page.share_url:
        print(f"public: {page.share_url}", flush=True)
