"""Files written past the page cache."""

import errno
import os
from typing import Any

import pytest
import torch
import xxhash

from pretrain.checkpoints import direct_io


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
            if direct_io.fcntl.fcntl(file, direct_io.fcntl.F_GETFL) & os.O_DIRECT:
                raise refuse
            return call(file, data)

        return checked

    monkeypatch.setattr(os, "open", opened)
    if request.param == "not at writing":
        monkeypatch.setattr(os, "write", refusing(really_write))
        monkeypatch.setattr(os, "readv", refusing(really_readv))


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000, 300_000])
def test_what_was_written_is_read(disk, tmp_path, monkeypatch, size):
    monkeypatch.setattr(direct_io, "BLOCK_BYTES", 1 << 16)
    content = os.urandom(size)
    with direct_io.DirectFile(tmp_path / "file") as file:
        for start in range(0, size, 70_001):
            assert file.tell() == start
            file.write(content[start : start + 70_001])
    assert (tmp_path / "file").read_bytes() == content
    assert file.digest == direct_io.digest(tmp_path / "file") == xxhash.xxh3_128_hexdigest(content)


def test_what_changed_on_the_disk_is_found(tmp_path):
    file: Any = direct_io.DirectFile(tmp_path / "file")
    with file:
        torch.save(torch.arange(1000), file)
    assert torch.load(tmp_path / "file").sum() == 499_500
    content = bytearray((tmp_path / "file").read_bytes())
    content[2000] ^= 1
    (tmp_path / "file").write_bytes(content)
    assert direct_io.digest(tmp_path / "file") != file.digest


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = direct_io.DirectFile(tmp_path / "file")
    file.write(b"some")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        file.close()
    assert file.closed
    file.close()
