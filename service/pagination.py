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
ROWS_AT_ONCE = 10
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

    def contents(rows: Sequence[Any]) -> Iterable[tuple[str, bytes]]:
        entities = [row for (row,) in rows]
        for entity, view in zip(entities, views(entities), strict=True):
            yield getattr(entity, id_column.key), view.model_dump_json(by_alias=True).encode()

    return page_of(session, query, id_column, after, limit, contents)


def page_of(
    session: Session,
    query: Select[Any],
    id_column: Any,
    after: str | None,
    limit: int,
    contents: Callable[[Sequence[Any]], Iterable[tuple[str, bytes]]],
) -> Response:
    """The same of rows of any kind. Args: contents: ids of some rows and what is shown of them, in their order."""
    shown: list[bytes] = []
    size, last, has_more = 0, after, False
    for row_id, content in _contents(session, query, id_column, after, limit + 1, contents):
        has_more = len(shown) == limit or (bool(shown) and size + len(content) > PAGE_BYTES)
        if has_more:
            break
        shown.append(content)
        size, last = size + len(content), row_id
    ending = json.dumps({"has_more": has_more, "next_cursor": last if has_more else None})
    return Response(b'{"data":[' + b",".join(shown) + b"]," + ending[1:].encode(), media_type="application/json")


def _contents(
    session: Session,
    query: Select[Any],
    id_column: Any,
    after: str | None,
    most: int,
    contents: Callable[[Sequence[Any]], Iterable[tuple[str, bytes]]],
) -> Iterator[tuple[str, bytes]]:
    """Ids of the rows and what is shown of them; a few are fetched at a time, for each may hold a megabyte."""
    while most > 0:
        here = query.where(id_column < after) if after else query
        rows = session.execute(here.order_by(id_column.desc()).limit(min(most, ROWS_AT_ONCE))).all()
        for row_id, content in contents(rows):
            after = row_id
            yield row_id, content
        if len(rows) < ROWS_AT_ONCE:
            return
        most -= len(rows)
