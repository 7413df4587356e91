"""Owns keeping damaged bytes from being served: an object is hashed before its first download."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from pared.errors import CorruptObject
from pared.state.objects import ObjectStore

_REMEMBERED = 4096


class VerifiedObjects:
    """Remembers which stored files had the right digest, until they are written to again."""

    def __init__(self, store: ObjectStore) -> None:
        """Args: store: where the objects are."""
        self._store = store
        self._verified: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, key: str, sha256: str) -> None:
        """Return if the object has this digest. Raises CorruptObject if it has another or is gone."""
        entry = (key, self._store.version(key), sha256)
        with self._lock:
            if entry in self._verified:
                self._verified.move_to_end(entry)
                return
        digest = hashlib.sha256()
        for chunk in self._store.read(key):
            digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise CorruptObject(
                "The stored file no longer has the digest it was stored with, so it is not served. "
                "Submit the job again to make it anew, and have the server's disk checked."
            )
        with self._lock:
            self._verified[entry] = None
            if len(self._verified) > _REMEMBERED:
                self._verified.popitem(last=False)
