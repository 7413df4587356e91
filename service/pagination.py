"""Owns keyset pagination: newest first, and no page skips or repeats a row while others are added."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from fastapi import Query
from sqlalchemy import Select
from sqlalchemy.orm import Session

After = Annotated[
    str | None,
    Query(max_length=30, pattern=r"^[0-9A-Za-z_]+$", description="`next_cursor` of the page before."),
]
Limit = Annotated[int, Query(ge=1, le=100, description="Rows on a page.")]

Row = TypeVar("Row")


def fetch_page(session: Session, query: Select[Row], id_column: Any, after: str | None, limit: int) -> list[Row]:
    """Up to `limit + 1` rows: one more than a page says that there is another page."""
    if after:
        query = query.where(id_column < after)
    return list(session.scalars(query.order_by(id_column.desc()).limit(limit + 1)))


def as_page(views: list[Any], limit: int) -> dict[str, Any]:
    """The page's JSON from up to `limit + 1` views."""
    shown = views[:limit]
    has_more = len(views) > limit
    return {"data": shown, "has_more": has_more, "next_cursor": shown[-1].id if has_more else None}
