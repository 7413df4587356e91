"""What processes log: from which level on, and with what is bound to the work under way."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from pydantic import ValidationError

from pared.state.logs import level_of_servers, thread_with_context
from pared.state.settings import Settings

LEVELS = ["debug", "info", "warning", "error"]


def test_lines_below_the_level_are_not_written():
    code = f"""
import os
import structlog
from pared.state.logs import configure_logging
from pared.state.settings import settings
for least in {LEVELS}:
    os.environ["PARED_LOG_LEVEL"] = least
    settings.cache_clear()
    log = structlog.get_logger()
    configure_logging(settings().log_level)
    for level in {LEVELS}:
        getattr(log, level)(least)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        (least, level) for least in LEVELS for level in LEVELS[LEVELS.index(least) :]
    ]


def test_a_line_is_json_in_ascii_whatever_is_logged():
    code = (
        "import pathlib, structlog; from pared.state.logs import configure_logging; configure_logging();"
        "structlog.get_logger().info('said', plain='a', control='\\x1b[31m\\x9b', turned='\\u202e', half='\\ud800',"
        "no=float('nan'), path=pathlib.Path('/x'), raw=b'\\xff', error=ValueError('v'), many=(1, {2}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout
    line = json.loads(done.stdout)
    assert (line["control"], line["turned"], line["half"]) == ("\x1b[31m\x9b", "\u202e", "\ud800")
    assert str(line["no"]) == "nan"
    assert (line["raw"], line["error"], line["many"]) == ("b'\\xff'", "ValueError('v')", [1, "{2}"])
    at = datetime.fromisoformat(line["timestamp"])
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "value", ["pathlib.Path('/x')", "{1}", "b'x'", "decimal.Decimal(1)", "10**30", "{1: 2}", "uuid.UUID(int=0)"]
)
def test_a_value_is_logged_in_one_way_whatever_stands_beside_it(value: str):
    code = (
        "import decimal, pathlib, structlog, uuid; from pared.state.logs import configure_logging; configure_logging();"
        f"[structlog.get_logger().info('said', value={value}, beside=beside) for beside in ('a', 'é', '\\ud800')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    alone, *others = [json.loads(line)["value"] for line in done.stdout.splitlines()]
    assert others == [alone, alone]


def test_a_line_that_finds_no_room_is_lost_and_not_what_is_logged_of():
    code = (
        "import sys, structlog; from pared.state.logs import configure_logging; configure_logging();"
        "log = structlog.get_logger();"
        "[log.info('said', text='x' * 1000) for _ in range(100)]; log.error('said'); log.warning('said');"
        "print('went on', file=sys.stderr)"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr.startswith("went on")


def test_a_level_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("PARED_LOG_LEVEL", "loud")
    with pytest.raises(ValidationError, match="debug"):
        Settings()


def test_servers_follow_the_level_but_never_debug():
    assert [level_of_servers(level) for level in LEVELS] == ["info", "info", "warning", "error"]


def test_a_thread_carries_what_was_bound_where_it_was_made():
    seen = []
    with structlog.contextvars.bound_contextvars(job="job_1", request_id="r"):
        thread = thread_with_context(lambda: seen.append(structlog.contextvars.get_contextvars()), "recorder")
    thread.start()
    thread.join()
    assert seen == [{"job": "job_1", "request_id": "r"}]
    assert thread.daemon
