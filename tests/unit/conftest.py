"""Unit tests start no process and listen on no port; a test that would is told so."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("A unit test starts no process and no server: this one belongs into tests/integration.")

    monkeypatch.setattr(subprocess.Popen, "__init__", refused)
    monkeypatch.setattr(socket.socket, "listen", refused)
    monkeypatch.setattr(os, "fork", refused)
