"""Owns what `PARED_OBJECTS_URL` may name: a folder, or a bucket and the prefix of all keys in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True)
class Bucket:
    """Objects of an S3-compatible server. Where it is and who we are, its own variables say, such as AWS_REGION."""

    name: str
    prefix: str


def place_of(url: str) -> Path | Bucket:
    """Where the objects of a `file://` or `s3://` URL are.

    Raises:
        ValueError: it is another URL, holds credentials, or names a bucket and the extra `s3` is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    prefix = parts.path.strip("/")
    if parts.scheme == "s3" and not (parts.query or parts.fragment) and _BUCKET.fullmatch(parts.netloc):
        if prefix and not _PREFIX.fullmatch(prefix):
            raise ValueError("in s3://bucket/prefix the prefix is of letters, digits, `-`, `_`, `.` and `/`")
        if find_spec("obstore") is None:
            raise ValueError("s3:// needs the extra `s3`: pip install 'pared[s3]'")
        return Bucket(parts.netloc, prefix)
    if "@" in parts.netloc:
        raise ValueError("credentials are given in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, never in the URL")
    raise ValueError(
        f"PARED_OBJECTS_URL must look like file:///var/lib/pared/objects or s3://bucket/prefix, not {url!r}"
    )
