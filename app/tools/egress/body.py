"""An answer's body: read as it comes, unpacked, and given up at its bound."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable, Iterator

from app.tools.errors import EgressError

ACCEPT_ENCODING = "gzip, deflate"

_PIECE_BYTES = 64 * 1024
_GZIP = zlib.MAX_WBITS | 16
_MAX_MEMBERS = 1000
_ZLIB_METHOD = 8  # in the low bits of the first byte of a zlib stream, RFC 1950


async def read_body(chunks: AsyncIterable[bytes], encoding: str, max_bytes: int) -> tuple[bytes, bool]:
    """The unpacked body, or its beginning, and whether that is all of it.

    Args:
        encoding: the Content-Encoding header; empty for none.
        max_bytes: of the body, unpacked; it bounds what is read packed, too.

    Raises:
        EgressError: it is packed in another way than was asked for, or wrongly.
    """
    unpack = _unpacking(encoding)
    body = bytearray()
    read = 0
    async for chunk in chunks:
        read += len(chunk)
        for piece in unpack.pieces(chunk):
            body += piece
            if len(body) > max_bytes:
                return bytes(body[:max_bytes]), False
        if read > max_bytes:
            return bytes(body), False
    unpack.end()
    return bytes(body), True


class _Plain:
    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        yield chunk

    def end(self) -> None:
        pass


class _Packed:
    """gzip or deflate, a piece at a time: a kilobyte can unpack to a megabyte.

    Args:
        window_bits: as zlib takes them; None for deflate, which some servers send without its zlib wrapping.
    """

    def __init__(self, window_bits: int | None) -> None:
        self._window_bits = window_bits
        self._unpacker = zlib.decompressobj(window_bits or zlib.MAX_WBITS)
        self._begun = False
        self._members = 1

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        if not self._begun and chunk:
            self._begin(chunk)
        try:
            while chunk:
                if self._unpacker.eof:
                    self._begin_member()
                piece = self._unpacker.decompress(chunk, _PIECE_BYTES)
                chunk = self._unpacker.unconsumed_tail or self._unpacker.unused_data
                if piece:
                    yield piece
            # What it still holds back comes without further input.
            while piece := self._unpacker.decompress(b"", _PIECE_BYTES):
                yield piece
        except zlib.error as error:
            raise EgressError("the answer is packed wrongly") from error

    def end(self) -> None:
        if self._begun and not self._unpacker.eof:
            raise EgressError("the answer breaks off in the middle")

    def _begin(self, chunk: bytes) -> None:
        self._begun = True
        if self._window_bits is None and chunk[0] & 0x0F != _ZLIB_METHOD:
            self._unpacker = zlib.decompressobj(-zlib.MAX_WBITS)

    def _begin_member(self) -> None:
        """RFC 1952, section 2.2: a gzip file may be several, one after the other."""
        self._members += 1
        if self._window_bits is None or self._members > _MAX_MEMBERS:
            raise EgressError("the answer is packed wrongly")
        self._unpacker = zlib.decompressobj(self._window_bits)


def _unpacking(encoding: str) -> _Plain | _Packed:
    match encoding.strip().lower():
        case "" | "identity":
            return _Plain()
        case "gzip" | "x-gzip":
            return _Packed(_GZIP)
        case "deflate":
            return _Packed(None)
        case other:
            raise EgressError(f"the answer is packed as {other[:40]!r}, which was not asked for")
