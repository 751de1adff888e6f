"""A request that comes in pieces: gunicorn's own parser, fed with what is here, which never waits for more."""

from __future__ import annotations

import re
from typing import Any

from gunicorn.config import Config
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.errors import (
    LimitRequestHeaders,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import Unreader

MAX_HEAD_BYTES = 64 * 1024
# gunicorn's limit is 8,190 bytes; what is longer is no line of a chunk's size.
MAX_CHUNK_LINE_BYTES = 8192
# Whoever sends a large file in chunks sends thousands of bytes in each.
MOST_CHUNKS = 10_000
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(?:;.*)?", re.DOTALL)
# gunicorn's reader of chunks copies such a piece for every line in it.
PIECE_BYTES = 2048


class TooManyChunksError(ParseException):
    """The body comes in so many pieces that to put it together would cost more than to read it."""


class Received(Unreader):
    """Bytes that have come and nobody has read. It has no socket: where it ends, gunicorn's parser sees the end."""

    def __init__(self) -> None:
        super().__init__()
        self.held = bytearray()
        self.piece_bytes = PIECE_BYTES

    def read(self, size: int | None = None, read_ahead: int | None = None) -> bytes:
        """At most `size` bytes, or a piece; none when there are no more."""
        size = read_ahead or self.piece_bytes if size is None else size
        taken = bytes(self.held[:size])
        del self.held[:size]
        return taken

    def unread(self, data: Any) -> None:
        """Put bytes back in front."""
        self.held[:0] = data


class Chunks:
    """How much of a chunked body is here. It says when to stop waiting; gunicorn's reader judges and reads them."""

    def __init__(self) -> None:
        self._line_at = 0
        self._passed_bytes = 0
        self._over = False
        self._count = 0

    def are_over(self, held: bytearray, most_bytes: int) -> bool:
        """Whether the last chunk is here, or something that is none, or more than `most_bytes` of content.

        `held` is the body from its beginning, as it came. Raises `TooManyChunksError`.
        """
        # Chunks of a byte or two are mostly lines.
        return self._content_bytes(held) > most_bytes or self._over or len(held) > 2 * most_bytes

    def _content_bytes(self, held: bytearray) -> int:
        """Go on to the first chunk that is not all here; returns how many bytes of content are."""
        while (line_end := held.find(b"\r\n", self._line_at)) >= 0:
            line = CHUNK_LINE.fullmatch(held, self._line_at, line_end)
            size = int(line[1], 16) if line else 0
            if size == 0:
                is_last_here = held.find(b"\r\n\r\n", line_end) >= 0
                self._over = not line or is_last_here or len(held) - line_end > MAX_HEAD_BYTES
                return self._passed_bytes
            next_line_at = line_end + 2 + size + 2
            if next_line_at > len(held):
                return self._passed_bytes + len(held) - line_end - 2
            self._line_at = next_line_at
            self._count += 1
            if self._count > MOST_CHUNKS:
                raise TooManyChunksError
            self._passed_bytes += size
        self._over = len(held) - self._line_at > MAX_CHUNK_LINE_BYTES
        return self._passed_bytes


class NoHostError(ParseException):
    """A request of HTTP/1.1 must name its host (RFC 9112, section 3.2)."""


class ArrivingRequest(Request):
    """A request whose head is here, and whose body may be on its way."""

    _expected_100_continue: bool
    version: tuple[int, int]
    body: Body

    def set_body_reader(self) -> None:
        """Find out how the body ends. Raises `ParseException`, also for a body that nothing here would unpack."""
        super().set_body_reader()
        for name, value in self.headers:
            if name == "TRANSFER-ENCODING" and value.strip(" \t").lower() != "chunked":
                raise UnsupportedTransferCoding(value)

    def names_host(self) -> bool:
        """Whether it says which host it is for."""
        return any(name == "HOST" for name, _ in self.headers)

    def waits_to_be_asked(self) -> bool:
        """Whether the client holds the body back until it is asked for; once, lest gunicorn asks again."""
        expects, self._expected_100_continue = self._expected_100_continue, False
        return expects


class ArrivingRequests(RequestParser):
    """gunicorn's parser in two steps, neither of which waits: `parse()` when bytes have come, `next()` to answer."""

    mesg_class = ArrivingRequest
    mesg: ArrivingRequest

    def __init__(self, cfg: Config, received: Received, address: Any) -> None:
        super().__init__(cfg, (), address)
        self.unreader = received
        self._received = received
        self._chunks = Chunks()

    def parse(self) -> bool:
        """Parse the next head; False when it is not all here. Raises `ParseException`."""
        head = bytes(self._received.held)
        if not head:
            return False
        self._received.piece_bytes = len(head)
        try:
            super().__next__()
        except NoMoreData:
            if len(head) > MAX_HEAD_BYTES:
                raise LimitRequestHeaders("the head has no end") from None
            self._received.held[:] = head
            return False
        finally:
            self._received.piece_bytes = PIECE_BYTES
        if self.mesg.version >= (1, 1) and not self.mesg.names_host():
            raise NoHostError
        self._chunks = Chunks()
        return True

    def has_all(self, most_bytes: int, *, client_ended: bool) -> bool:
        """Whether there is nothing to wait for: the body is here, or will not come, or is over `most_bytes`.

        The request is the connection's last unless gunicorn knows where the next one begins.
        """
        held, reader = self._received.held, self.mesg.body.reader
        if isinstance(reader, LengthReader) and len(held) >= reader.length:
            return True
        if isinstance(reader, LengthReader):
            is_last = reader.length > most_bytes
        else:
            is_last = self._chunks.are_over(held, most_bytes)
        if is_last or client_ended:
            self.mesg.force_close()
            return True
        return False

    def pass_over_body(self) -> None:
        """Skip what nobody read of a body that is here."""
        while self.mesg.body.read(PIECE_BYTES):
            pass

    def __next__(self) -> Request:
        return self.mesg
