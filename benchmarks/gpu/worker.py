"""The process that runs the parts of a session for `supervisor.py`.

It reads jobs from its standard input, and writes one line of JSON per message to its standard
output. Everything else that it or a library prints is redirected to the standard error.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Recorder:
    """Runs the items of a part, and reports each one.

    Attributes:
        send: Sends a message to the supervisor.
        options: The options of the session.
        context: Result of the session's `setup`.
        seconds: Time limit of the part.
        skip: Items that an earlier worker has begun.
    """

    send: Callable[[dict[str, Any]], None]
    options: dict[str, Any]
    context: Any
    seconds: float
    skip: Sequence[str] = ()
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Returns the seconds that the part has left."""
        return self.began + self.seconds - time.monotonic()

    def measure(
        self, name: str, work: Callable[..., dict[str, Any]], *arguments: Any, needs: float = 0.0
    ) -> None:
        """Reports the figures that `work(*arguments)` returns, or why it failed.

        The item is skipped if an earlier worker has begun it.

        needs: Seconds that must be left for the item to start.
        """
        if name in self.skip:
            return
        self.send({"item": name})
        if self.left() < needs:
            self.send({"row": {"name": name, "failed": f"{self.left():.0f} s were left"}})
            return
        print(f"-- {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            row = work(*arguments)
        except Exception as error:  # every kernel, compiler and library raises its own
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            row = {"failed": f"{type(error).__name__}: {lines[0][:300]}"}
        row = {"name": name, **row, "whole_seconds": round(time.monotonic() - began, 2)}
        self.send({"row": row})
        if self.context is not None:
            self.context.clean_up()


def resolve(name: str) -> Callable[..., Any]:
    """Returns the function that `module:function` names."""
    module, function = name.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def main() -> None:
    """Runs jobs until the standard input ends."""
    faulthandler.enable()  # prints the stack of a process that dies in a library
    with os.fdopen(os.dup(1), "w") as messages:
        os.dup2(2, 1)

        def send(message: dict[str, Any]) -> None:
            messages.write(json.dumps(message) + "\n")
            messages.flush()

        first = json.loads(sys.stdin.readline())
        context = resolve(first["setup"])(first["options"]) if first["setup"] else None
        for line in sys.stdin:
            job = json.loads(line)
            failed = None
            recorder = Recorder(send, first["options"], context, job["seconds"], job["skip"])
            try:
                resolve(job["function"])(recorder)
            except Exception as error:  # the other parts must run all the same
                traceback.print_exc()
                failed = f"{type(error).__name__}: {str(error)[:300]}"
            send({"failed": failed})


if __name__ == "__main__":
    main()
