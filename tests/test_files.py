"""Files that are whole or not there: what is said when one cannot be written."""

import errno
import os
from pathlib import Path

import pytest

from fastqat._files import write_atomic

HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: "change its permissions",
    errno.EROFS: "on a disk that can be written",
    errno.ENAMETOOLONG: "a shorter name",
    errno.EIO: "choose another folder",
}


@pytest.mark.parametrize("number", HINTS, ids=errno.errorcode.get)
def test_the_hint_fits_the_error(tmp_path, monkeypatch, number):
    path = tmp_path / "x"
    write_atomic(path, "old")

    def refuse(self: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match=f"cannot write {path}: .*; .*{HINTS[number]}") as raised:
        write_atomic(path, "new")
    assert raised.value.errno == number and ("space" in HINTS[number]) == ("free some space" in str(raised.value))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_is_said(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match="a part of that path is a file"):
        write_atomic(tmp_path / "a" / "b", "new")
