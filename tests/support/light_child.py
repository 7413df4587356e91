"""A child without torch that counts to three, with a checkpoint a step, through the real sandbox and protocol."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pared.reports import Measurement, Report, Reproduce
from pared.state.failpoints import arm, failpoint
from worker import forkserver, protocol


def main() -> None:
    """Count on from the checkpoint, if there is one."""
    request = forkserver.enter()
    arm(request["failpoints"])

    def send(message: protocol.Message) -> None:
        os.write(request["messages"], protocol.encode(message))

    send(protocol.Confined(type="confined"))
    resume = request["resume"]
    count = int(Path(resume["path"]).read_text()) if resume else 0
    for step in range(count + 1, 4):
        path = Path("checkpoints", str(step))
        path.with_suffix(".part").write_text(str(step))
        failpoint("child.checkpoint.written")
        path.with_suffix(".part").replace(path)
        failpoint("child.checkpoint.renamed")
        send(protocol.Checkpoint(type="checkpoint", step=step))
        while path.exists():  # until the worker has it
            time.sleep(0.01)
        count = step
    Path("out", "model.pt").write_text(f"counted to {count}")
    size = Measurement(parameters=1, nonzero_parameters=1, macs=1, file_bytes=1, compressed_bytes=1)
    made = Reproduce(spec={}, seed=0, versions={}, device="cpu", threads=1, inputs={})
    report = Report(type="prune", verdict="fine", before=size, after=size, reproduce=made)
    failpoint("child.reported")
    send(protocol.Result(type="result", report=report.model_dump(mode="json")))


if __name__ == "__main__":
    main()
