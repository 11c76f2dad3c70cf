"""Compressed files, by gzip and Zstandard."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from ..errors import BackupInvalid, ConfigError
from ..files import open_regular
from .archive import CHUNK
from .manifest import Progress

SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst"}
GZIP_LEVEL, ZSTD_LEVEL = 1, 3  # the fast ones, where the rest costs more time than it saves room
ZSTD_WINDOW = 1 << 23  # bytes of memory that a file may ask for; this level asks for 2 MiB


def require(method: str) -> None:
    """Find out before any work whether a method can be used here.

    :raises ConfigError: when it cannot.
    """
    if method == "zstd":
        _zstandard()


def compress(source: Path, target: Path, method: str, progress: Progress) -> None:
    """Write a file compressed into another that is there."""
    total, done = source.stat().st_size, 0
    with source.open("rb") as plain, _writer(target, method) as packed:
        while chunk := plain.read(CHUNK):
            packed.write(chunk)
            done += len(chunk)
            progress("compressing", done, total)


def decompress(source: Path, target: Path, method: str, progress: Progress, size: int) -> None:
    """Write a compressed file's content into another file that is there.

    :param size: bytes that it must be; no more than these are written.
    :raises BackupInvalid: when it is not what was compressed, or more.
    """
    done = 0
    with target.open("wb") as file:
        for chunk in _chunks(source, method, progress):
            done += len(chunk)
            if done > size:
                raise BackupInvalid(
                    f"{source} unpacks to more than the {size} bytes of its manifest", "take another backup"
                )
            file.write(chunk)


def digest(source: Path, method: str, progress: Progress) -> str:
    """Return the SHA-256 of a compressed file's content, in hexadecimal digits."""
    found = hashlib.sha256()
    for chunk in _chunks(source, method, progress):
        found.update(chunk)
    return found.hexdigest()


def _chunks(source: Path, method: str, progress: Progress) -> Iterator[bytes]:
    total = source.stat().st_size
    try:
        with os.fdopen(open_regular(source), "rb") as raw, _reader(raw, method) as plain:
            while chunk := plain.read(CHUNK):
                yield chunk
                progress("decompressing", raw.tell(), total)
    except Exception as error:
        if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile) or type(error).__name__ == "ZstdError":
            raise BackupInvalid(f"{source} cannot be decompressed: {error}", "take another backup") from None
        raise


@contextmanager
def _writer(path: Path, method: str) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        if method == "gzip":
            with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packed:
                yield cast("IO[bytes]", packed)
        else:
            packer = _zstandard().ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
            with packer.stream_writer(file, closefd=False) as packed:
                yield packed


def _reader(file: IO[bytes], method: str) -> Any:
    if method == "gzip":
        return gzip.GzipFile(fileobj=file)
    return _zstandard().ZstdDecompressor(max_window_size=ZSTD_WINDOW).stream_reader(file, closefd=False)


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigError(
            "zstandard is not installed", "pip install 'whatspire-db[zstd]', or take --compress gzip"
        ) from None
    return zstandard
