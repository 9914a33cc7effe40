"""Opens files, packed or not, on the disk or inside others; what is wrong with one is told with how far it was read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from harpe.errors import HarpeError

ZST_WINDOW = 2**31
"""Bytes that a .zst file may look back: the format's largest (zstd --long=31)."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS left in the place of the real one."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's content as bytes, unpacked as it is read.

    Raises HarpeError at opening, and while it is read in the block: for a pointer of Git LFS, and for a packed file
    that is damaged or cut off.
    """
    with path.open("rb") as raw:
        yield unpacked(raw, path.suffix.lower(), str(path))


def unpacked(raw: io.BufferedReader, suffix: str, where: str) -> BinaryIO:
    """What a stream holds that is packed as its suffix says (`.gz`, `.tgz` …), or is not packed; errors as in `opened`.

    Parameters
    ----------
    where
        Names the stream in what is raised.
    """
    if raw.peek(len(POINTER)).startswith(POINTER):
        raise HarpeError(
            f"--data: {where} is a pointer of Git LFS and not the file itself. Fetch it (git lfs pull), or leave it "
            "out."
        )
    unpack: dict[str, Callable[[Any], Any]] = {
        ".gz": gzip.open,
        ".tgz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".zst": _Frames,
    }
    if suffix not in unpack:
        return raw
    return cast(BinaryIO, io.BufferedReader(_Told(unpack[suffix](raw), where), 2**18))


class _Told(io.RawIOBase):
    """An unpacked stream, what is wrong with it being told with its name and how far it could be read."""

    def __init__(self, stream: Any, where: str) -> None:
        self._stream, self._where, self._bytes = stream, where, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = int(self._stream.readinto(buffer))
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            what = "is cut off" if isinstance(error, EOFError) else f"is damaged ({error})"
            raise HarpeError(
                f"--data: {self._where} {what}: {self._bytes:,} bytes of its content could be read. Copy it again, or "
                "leave it out."
            ) from error
        self._bytes += count
        return count


class _Frames(io.RawIOBase):
    """The content of a .zst file: all its frames, of which some programs write many (pzstd), with frames to be skipped
    between them.

    The library's own reader ends without a word where a file is cut off.
    """

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard  # here, since few corpora need it

        self._raw, self._new = raw, zstandard.ZstdDecompressor(max_window_size=ZST_WINDOW)
        self._error: type[Exception] = zstandard.ZstdError
        self._frame: Any = None
        self._packed, self._content = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            self._packed = self._packed or self._raw.read(2**14)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._frame = self._frame or self._new.decompressobj()
            try:
                self._content = memoryview(self._frame.decompress(self._packed))
            except self._error as error:
                raise OSError(str(error)) from error
            self._packed, ended = (self._frame.unused_data, True) if self._frame.eof else (b"", False)
            self._frame = None if ended else self._frame
        count = min(len(buffer), len(self._content))
        buffer[:count], self._content = self._content[:count], self._content[count:]
        return count
