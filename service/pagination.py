"""Owns keyset pagination: newest first, and no page skips or repeats a row while others are added."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query, Response
from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.orm import Session

After = Annotated[
    str | None,
    Query(max_length=30, pattern=r"^[0-9A-Za-z_]+$", description="`next_cursor` of the page before."),
]
Limit = Annotated[int, Query(ge=1, le=100, description="Most rows on a page. One of large rows may have fewer.")]

PAGE_BYTES = 4 << 20
"""A page ends early where the next row would make it larger."""
ROWS_AT_ONCE = 25
EXPANDED_ROWS = 10
"""On a page whose rows are shown with their inspections."""

Row = TypeVar("Row")


def json_page(
    session: Session,
    query: Select[Row],
    id_column: Any,
    after: str | None,
    limit: int,
    views: Callable[[Sequence[Row]], Iterable[BaseModel]],
) -> Response:
    """A page of entities as JSON: up to `limit`, or fewer, but one at least, where it would outgrow `PAGE_BYTES`.

    Args:
        id_column: by which the rows are ordered, newest first.
        after: the id of the last row of the page before.
        views: what is shown of some rows, in their order.
    """

    def fetch(after: str | None, most: int) -> Sequence[Row]:
        here = query.where(id_column < after) if after else query
        return session.scalars(here.order_by(id_column.desc()).limit(most)).all()

    def contents(rows: Sequence[Row]) -> Iterable[tuple[str, bytes]]:
        for row, view in zip(rows, views(rows), strict=True):
            yield getattr(row, id_column.key), view.model_dump_json(by_alias=True).encode()

    return Response(page_of(fetch, after, limit, contents), media_type="application/json")


def first_rows(limit: int) -> int:
    """How many rows `page_of` wants at first."""
    return min(limit + 1, ROWS_AT_ONCE)


def page_of(
    fetch: Callable[[str | None, int], Sequence[Row]],
    after: str | None,
    limit: int,
    contents: Callable[[Sequence[Row]], Iterable[tuple[str, bytes]]],
) -> bytes:
    """The JSON of a page of rows of any kind.

    Args:
        fetch: the rows behind the one with this id, or the newest, and at most so many.
        contents: ids of some rows and what is shown of them as JSON, in their order.
    """
    shown: list[bytes] = []
    size, last, has_more = 0, after, False
    for row_id, content in _contents(fetch, after, limit + 1, contents):
        has_more = len(shown) == limit or (bool(shown) and size + len(content) > PAGE_BYTES)
        if has_more:
            break
        shown.append(content)
        size, last = size + len(content), row_id
    ending = json.dumps({"has_more": has_more, "next_cursor": last if has_more else None})
    return b'{"data":[' + b",".join(shown) + b"]," + ending[1:].encode()


def _contents(
    fetch: Callable[[str | None, int], Sequence[Row]],
    after: str | None,
    most: int,
    contents: Callable[[Sequence[Row]], Iterable[tuple[str, bytes]]],
) -> Iterator[tuple[str, bytes]]:
    """Ids of the rows and what is shown of them; some are fetched at a time, for each may hold a megabyte."""
    while most > 0:
        rows = fetch(after, min(most, ROWS_AT_ONCE))
        for row_id, content in contents(rows):
            after = row_id
            yield row_id, content
        if len(rows) < ROWS_AT_ONCE:
            return
        most -= len(rows)
