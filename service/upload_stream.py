"""Owns receiving uploads: bytes go from the socket to the object store, in constant memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pared.errors import TooLarge, ValidationError
from pared.state.objects import ObjectStore, ObjectWriter, Stored

BATCH_BYTES = 4 << 20
FIELD_BYTES = 1 << 20


@dataclass(frozen=True)
class Received:
    """An upload in the store, and the text fields of its form."""

    stored: Stored
    fields: dict[str, str] = field(default_factory=dict)


async def receive(request: Request, store: ObjectStore, max_bytes: int) -> Received:
    """Stream a raw or multipart body into the store.

    Raises:
        TooLarge: it has, or says it has, more bytes than this server takes.
        ValidationError: it is empty, or not well-formed.
        StorageFull: the store has no room.
    """
    announced = request.headers.get("content-length", "")
    if re.fullmatch(r"[0-9]{1,18}", announced) and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ValidationError("Send the file as it is, without a Content-Encoding.")
    content_type, parameters = parse_options_header(request.headers.get("content-type"))
    writer = await run_in_threadpool(store.writer)
    try:
        fields: dict[str, str] = {}
        if content_type == b"multipart/form-data":
            form = _Form(parameters.get(b"boundary", b""), writer)
            await pump(request.stream(), partial(_write_all, form.write), max_bytes)
            fields = form.finish()
        else:
            await pump(request.stream(), partial(_write_all, writer.write), max_bytes)
        if writer.size_bytes == 0:
            raise ValidationError("The upload is empty. Send the file's bytes as the request's body.")
        return Received(await run_in_threadpool(writer.commit), fields)
    finally:
        await run_in_threadpool(writer.abort)


async def pump(chunks: AsyncIterator[bytes], write: Callable[[list[bytes]], None], max_bytes: int) -> None:
    """Hand over batches to a thread, which hashes and writes one while the next is received.

    Raises:
        TooLarge: there are more bytes than `max_bytes`.
    """
    total = waiting = 0
    batch: list[bytes] = []
    writing: asyncio.Task[None] | None = None
    try:
        async for chunk in chunks:
            total += len(chunk)
            if total > max_bytes:
                raise _too_large(max_bytes)
            batch.append(chunk)
            waiting += len(chunk)
            if waiting >= BATCH_BYTES:
                if writing:
                    await writing
                writing = asyncio.create_task(run_in_threadpool(write, batch))
                batch, waiting = [], 0
        if writing:
            await writing
        await run_in_threadpool(write, batch)
    finally:
        if writing and not writing.done():
            await asyncio.wait([writing])  # nobody may close the file under a thread that writes to it


def _write_all(write: Callable[[bytes], None], batch: list[bytes]) -> None:
    for chunk in batch:
        write(chunk)


class _Form:
    """A multipart form on its way in: one file, which goes to the writer, and small text fields."""

    def __init__(self, boundary: bytes, writer: ObjectWriter) -> None:
        if not boundary:
            raise ValidationError("The multipart body names no boundary.")
        self._writer = writer
        self._fields: dict[str, str] = {}
        self._files = 0
        self._complete = False
        self._header = b""
        self._value = b""
        self._disposition: dict[bytes, bytes] = {}
        self._text = bytearray()  # grown in place: it may come a byte at a time
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_ends,
                    "on_end": self._ends,
                },
            )
        except FormParserError as error:
            raise ValidationError(f"The multipart body cannot be read: {error}.") from error

    def write(self, data: bytes) -> None:
        """Take the next bytes of the body. Raises ValidationError."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise ValidationError(f"The multipart body cannot be read: {error}.") from error

    def finish(self) -> dict[str, str]:
        """The text fields, with the file's own name as `filename` unless a field says otherwise."""
        if not self._complete:
            raise ValidationError("The multipart body ends too early. Send it again.")
        if not self._files:
            raise ValidationError("The form holds no file. Send one, such as with curl -F file=@model.pt.")
        return self._fields

    def _part_begins(self) -> None:
        self._disposition, self._text = {}, bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = parse_options_header(self._value)[1]
        self._header = self._value = b""

    def _headers_end(self) -> None:
        if b"filename" in self._disposition:
            self._files += 1
            if self._files > 1:
                raise ValidationError("The form holds several files. Send one file a request.")
            self._fields.setdefault("filename", self._disposition[b"filename"].decode(errors="replace"))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if b"filename" in self._disposition:
            self._writer.write(memoryview(data)[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > FIELD_BYTES:
            raise ValidationError("A text field of the form is larger than 1 MiB.")

    def _part_ends(self) -> None:
        if b"filename" not in self._disposition:
            name = self._disposition.get(b"name", b"").decode(errors="replace")
            if len(self._fields) > 16:
                raise ValidationError("The form has more fields than an upload knows.")
            self._fields[name] = self._text.decode(errors="replace")

    def _ends(self) -> None:
        self._complete = True


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"This server takes uploads of up to {max_bytes:,} bytes. Whoever runs it can raise PARED_MAX_UPLOAD_BYTES."
    )
