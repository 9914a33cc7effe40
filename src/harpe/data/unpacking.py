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

PIECE = 2**14
"""Packed bytes that are read at a time, and of some kinds unpacked ones that are made."""

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
        ".bz2": lambda packed: _Frames(packed, bz2.BZ2Decompressor, OSError, b"\0"),
        ".xz": lambda packed: _Frames(packed, lzma.LZMADecompressor, lzma.LZMAError, b"\0"),
        ".zst": _zst,
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
        except (EOFError, OSError, zlib.error) as error:
            what = "is cut off" if isinstance(error, EOFError) else f"is damaged ({error})"
            raise HarpeError(
                f"--data: {self._where} {what}: {self._bytes:,} bytes of its content could be read. Copy it again, or "
                "leave it out."
            ) from error
        self._bytes += count
        return count


class _Frames(io.RawIOBase):
    """The content of a packed file of one frame or many, one behind the other, as pzstd, pbzip2 and `cat` write them.

    The libraries' own readers end without a word where a .zst file is cut off, and where a later frame of a .bz2 or .xz
    file does not begin as one: to them what follows is no part of the file.

    Parameters
    ----------
    new
        Makes what unpacks a frame.
    error
        That it raises for a damaged one.
    padding
        A byte that may fill the space behind a frame.
    """

    def __init__(self, raw: BinaryIO, new: Callable[[], Any], error: type[Exception], padding: bytes = b"") -> None:
        self._raw, self._new, self._error, self._padding = raw, new, error, padding
        self._frame: Any = None
        self._packed, self._content = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            holding = self._frame is not None and not getattr(self._frame, "needs_input", True)
            if not holding and not self._read():
                if self._frame is not None:
                    raise EOFError
                return 0
            if self._frame is None:
                self._frame = self._new()
            # of what has a bound: a few bytes of .xz may stand for gigabytes
            bound = (PIECE,) if hasattr(self._frame, "needs_input") else ()
            try:
                self._content = memoryview(self._frame.decompress(self._packed, *bound))
            except self._error as error:
                raise OSError(str(error)) from error
            ended = self._frame.eof
            self._packed = self._frame.unused_data if ended else b""
            self._frame = None if ended else self._frame
        count = min(len(buffer), len(self._content))
        buffer[:count], self._content = self._content[:count], self._content[count:]
        return count

    def _read(self) -> bool:
        """Have packed bytes at hand; whether there are any more."""
        while True:
            packed = self._packed or self._raw.read(PIECE)
            self._packed = packed if self._frame is not None else packed.lstrip(self._padding)
            if self._packed or not packed:
                return bool(self._packed)


def _zst(raw: BinaryIO) -> _Frames:
    import zstandard  # here, since few corpora need it

    unpacker = zstandard.ZstdDecompressor(max_window_size=ZST_WINDOW)
    return _Frames(raw, unpacker.decompressobj, zstandard.ZstdError)
