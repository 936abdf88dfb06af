"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# What a damaged archive (.npz, .gz, .pt) raises, from the file system up.
DAMAGED_ARCHIVE = (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)

_HINTS = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EACCES: "change its permissions or choose another folder",
    errno.EPERM: "change its permissions or choose another folder",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOTDIR: "a part of that path is a file; choose another folder",
    errno.EEXIST: "a part of that path is a file; choose another folder",
    errno.EISDIR: "a folder has that name; remove it or choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def naming_errors(path: str | Path) -> Iterator[None]:
    """Run what writes to `path`; an `OSError` in it then names the file and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        hint = _HINTS.get(error.errno, "choose another folder")
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; {hint} (an older file is untouched)") from error


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it is flushed to disk and renamed to `path` in one step.

    When the block or the disk fails, the temporary file is removed and an older `path` stays as it was.

    Raises:
        OSError: the disk is full or not writable; the message names the file and says what to do.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            with open(part, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader sees the old content or the new, never a part."""
    with atomic_path(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, each by column."""
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` to a CSV file in one step: floats with six digits, what a row does not have empty.

    Raises:
        ValueError: a row has something that is no column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue())
