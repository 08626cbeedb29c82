"""Files written past the page cache."""

import errno
import os
from typing import Any

import pytest
import torch
import xxhash

from pretrain.checkpoints import direct_io as direct


@pytest.fixture(params=["past the cache", "not at opening", "not at writing"])
def disk(request, monkeypatch):
    """Disks that take direct access, refuse to open for it, and refuse the first access."""
    refuse = OSError(errno.EINVAL, "Invalid argument")
    really_open, really_write, really_readv = os.open, os.write, os.readv

    def opened(path, flags, *arguments):
        if flags & os.O_DIRECT and request.param == "not at opening":
            raise refuse
        return really_open(path, flags, *arguments)

    def refusing(call):
        def checked(file, data):
            if direct.fcntl.fcntl(file, direct.fcntl.F_GETFL) & os.O_DIRECT:
                raise refuse
            return call(file, data)

        return checked

    monkeypatch.setattr(os, "open", opened)
    if request.param == "not at writing":
        monkeypatch.setattr(os, "write", refusing(really_write))
        monkeypatch.setattr(os, "readv", refusing(really_readv))


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000, 300_000])
def test_what_was_written_is_read(disk, tmp_path, monkeypatch, size):
    monkeypatch.setattr(direct, "BLOCK_BYTES", 1 << 16)
    content = os.urandom(size)
    with direct.DirectFile(tmp_path / "file") as file:
        for start in range(0, size, 70_001):
            assert file.tell() == start
            file.write(content[start : start + 70_001])
    assert (tmp_path / "file").read_bytes() == content
    assert file.digest == direct.digest(tmp_path / "file") == xxhash.xxh3_128_hexdigest(content)


def test_what_changed_on_the_disk_is_found(tmp_path):
    file: Any = direct.DirectFile(tmp_path / "file")
    with file:
        torch.save(torch.arange(1000), file)
    assert torch.load(tmp_path / "file").sum() == 499_500
    content = bytearray((tmp_path / "file").read_bytes())
    content[2000] ^= 1
    (tmp_path / "file").write_bytes(content)
    assert direct.digest(tmp_path / "file") != file.digest


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = direct.DirectFile(tmp_path / "file")
    file.write(b"some")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        file.close()
    assert file.closed
    file.close()


def test_a_share_of_the_time_until_somebody_waits_or_it_takes_long(monkeypatch):
    now, worked, hurry = [0.0], [0.0], [False]
    monkeypatch.setattr(direct.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(direct.time, "process_time", lambda: worked[0])
    monkeypatch.setattr(direct.time, "sleep", lambda seconds: now.append(now.pop() + seconds))

    def work(seconds, disk):
        worked[0] += seconds
        now[0] += seconds + disk

    pace = direct.Pace(0.25, 12.0, lambda: hurry[0])
    work(1.0, disk=2.0)  # what the disk takes is part of the rest
    pace.rest()
    assert now == [pytest.approx(4.0)]
    work(1.0, disk=5.0)
    pace.rest()
    assert now == [pytest.approx(10.0)]
    work(1.0, disk=0.0)
    pace.rest()
    assert now == [pytest.approx(12.0)]
    pace = direct.Pace(0.25, 7.0, lambda: hurry[0])
    hurry[0] = True
    work(1.0, disk=0.0)
    pace.rest()
    assert now == [pytest.approx(13.0)]
