"""An S3 server on loopback (moto) whose responses can fail or stall."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.patience import limit

BUCKET = "bucket"


class S3Server:
    """Serves moto's S3 on a free port.

    Attributes:
        fail_next: Number of next GETs of objects that get `status` (503 means busy).
        stall: If set, GETs of objects wait for `release`.
        gets: Number of GETs of objects served so far.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log_request(self, *_: Any, **__: Any) -> None:
                pass

        self.fail_next = 0
        self.status = "503 Slow Down"
        self.stall = False
        self.release = threading.Event()
        self.gets = 0
        self._lock = threading.Lock()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        path = environ["PATH_INFO"]
        is_object = environ["REQUEST_METHOD"] == "GET" and path.count("/") >= 2
        if is_object and not path.endswith("/"):
            with self._lock:
                self.gets += 1
                failing = self.fail_next > 0
                self.fail_next -= failing
            if failing and self.stall:
                self.release.wait(limit(60))
            if failing:
                start_response(self.status, [("Content-Type", "text/plain")])
                return [b"not now"]
        return self._app(environ, start_response)

    def environment(self) -> dict[str, str]:
        """Returns the environment variables of a process that uses this server and no other."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def close(self) -> None:
        """Stops serving."""
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def running() -> Iterator[S3Server]:
    """Runs a server with an empty bucket; the environment of this process points to it."""
    from data_pipeline.store import storage

    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in server.environment().items():
            patch.setenv(key, value)
        storage._store.cache_clear()
        try:
            storage._store("s3", storage.os.getpid()).mkdir(BUCKET)
            yield server
        finally:
            storage._store.cache_clear()
            server.close()
