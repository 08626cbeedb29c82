"""A stand-in for the command `vllm`: a server with processes that are hard to end.

It starts a process, which starts one in a session of its own, as engines do. With --deaf, all three
ignore SIGTERM. They hold the write end of the FIFO named by STAND_IN_FIFO, so that its reader sees
the end of the file when the last of them is gone. The first line that they write is a JSON object
about the server, the second is written once all processes run. With STAND_IN_PHASE=starting, the
server never answers; with ending, it exits at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Healthy(BaseHTTPRequestHandler):
    """Answers every GET with status 200."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def main() -> None:
    """Starts the processes, and serves or waits."""
    fifo = os.open(os.environ["STAND_IN_FIFO"], os.O_WRONLY)
    about = {"arguments": sys.argv[1:], "key": os.environ.get("VLLM_API_KEY")}
    os.write(fifo, f"{json.dumps(about)}\n".encode())
    if "--deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited
    ready, told = os.pipe()
    last = f"import signal, os; os.write({told}, b'x'); signal.pause()"
    below = "import signal, subprocess, sys; "
    below += f"subprocess.Popen([sys.executable, '-S', '-c', {last!r}], "
    below += "start_new_session=True, close_fds=False); signal.pause()"
    subprocess.Popen([sys.executable, "-S", "-c", below], pass_fds=(fifo, told))
    os.read(ready, 1)
    if os.environ["STAND_IN_PHASE"] == "ending":
        os.write(fifo, b"ready\n")
        sys.exit(3)
    if os.environ["STAND_IN_PHASE"] == "starting":
        os.write(fifo, b"ready\n")
        signal.pause()
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = HTTPServer(("127.0.0.1", port), Healthy)
    os.write(fifo, b"ready\n")
    server.serve_forever()


if __name__ == "__main__":
    main()
