"""The supervisor of the GPU session: order, files, and parts that hang, die or fail."""

from __future__ import annotations

import json
import os
import time

from benchmarks.gpu.supervisor import Part, Supervisor
from tests.patience import limit

HERE = f"{__name__}:"
LONG = 120.0


def two_items(recorder):
    recorder.measure("one", dict, {"pid": os.getpid()})
    recorder.measure("two", dict, {"device": recorder.options["device"]})


def hangs(recorder):
    recorder.measure("before", dict, {"value": 1})
    recorder.measure("hung", never_returns)
    recorder.measure("after", dict, {"value": 2})


def never_returns():
    """Waits like a kernel that does not end: no signal handler of Python runs."""
    import ctypes

    while True:
        ctypes.CDLL(None).pause()


def dies(recorder):
    recorder.measure("before", dict, {"value": 1})
    recorder.measure("dead", os._exit, 7)
    recorder.measure("after", dict, {"value": 2})


def fails(recorder):
    print("printed by a library")
    recorder.measure("raises", int, "no number")
    recorder.measure("too late", dict, needs=1e9)
    raise RuntimeError("outside of the items")


def run(tmp_path, parts, seconds=LONG):
    published = []
    supervisor = Supervisor(
        {"device": "cpu"},
        tmp_path / "log",
        lambda figures: published.append(json.dumps(figures)),
    )
    supervisor.run(parts, seconds)
    assert json.loads(published[-1]) == supervisor.figures
    return supervisor.figures


def values(part):
    return {row["name"]: row.get("value", row.get("failed")) for row in part["rows"]}


def test_parts_run_in_order_in_one_process(tmp_path):
    parts = [Part(name, HERE + "two_items", LONG) for name in ("first", "second")]
    found = run(tmp_path, parts)
    assert list(found) == ["first", "second"]
    rows = [row for part in found.values() for row in part["rows"]]
    assert [row["name"] for row in rows] == ["one", "two"] * 2
    assert len({row["pid"] for row in rows if "pid" in row}) == 1
    assert rows[1]["device"] == "cpu"
    assert not any("failed" in part for part in found.values())


def test_a_part_killed_at_its_limit_leaves_the_others_figures(tmp_path):
    parts = [
        Part("first", HERE + "two_items", LONG),
        Part("hung", HERE + "hangs", 1.0),
        Part("last", HERE + "two_items", LONG),
    ]
    found = run(tmp_path, parts)
    assert found["hung"]["failed"] == "killed at the limit of 1 s"
    assert list(found) == ["first", "hung", "last"]
    for name in ("first", "last"):
        assert [row["name"] for row in found[name]["rows"]] == ["one", "two"]


def test_a_part_continues_after_an_item_that_hung_or_died(tmp_path):
    seconds = limit(0.3)
    parts = [Part("hung", HERE + "hangs", LONG, seconds), Part("dead", HERE + "dies", LONG)]
    found = run(tmp_path, parts)
    reason = f"killed at the limit of {seconds:g} s"
    assert values(found["hung"]) == {"before": 1, "hung": reason, "after": 2}
    reason = "the process ended with exit code 7"
    assert values(found["dead"]) == {"before": 1, "dead": reason, "after": 2}
    assert not any("failed" in part for part in found.values())


def test_a_failure_is_recorded_with_its_reason(tmp_path):
    found = run(tmp_path, [Part("bad", HERE + "fails", LONG)])["bad"]
    assert found["failed"] == "RuntimeError: outside of the items"
    assert values(found)["raises"].startswith("ValueError: invalid literal")
    assert values(found)["too late"].endswith("s were left")
    assert "printed by a library" in (tmp_path / "log").read_text()


def test_parts_without_time_are_listed(tmp_path):
    began = time.monotonic()
    found = run(tmp_path, [Part("late", HERE + "two_items", LONG)], seconds=1.0)
    assert found == {"late": {"rows": [], "failed": "no time was left"}}
    assert time.monotonic() - began < LONG
