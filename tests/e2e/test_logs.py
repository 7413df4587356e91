"""What the processes of a service log, as `PARED_LOG_LEVEL` says."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.processes import Processes
from tests.e2e.stack import new_stack


def test_at_a_high_level_no_process_writes_a_line_while_all_goes_well(processes: Processes, scratch: Path) -> None:
    stack = new_stack(scratch / "quiet", processes, workers=1, log_level="error")
    try:
        assert stack.inspected(stack.upload_model(b"no model at all"))["status"] == "rejected"
        assert "INFO" not in stack.api.log.read_text()
        assert stack.api.records() == stack.workers[0].records() == []
    finally:
        stack.stop()
