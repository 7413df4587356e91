"""A child without torch, through the real sandbox and protocol: counts with checkpoints, or does what the job names."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pared.errors import DeviceUnavailable, NothingToPrune, ParedError
from pared.reports import Measurement, Plan, Report, Reproduce, Size
from pared.state.failpoints import arm, failpoint
from worker import forkserver, protocol


def main() -> None:
    """Do what the job's `include` names, a behaviour and its arguments; without one, count to three."""
    request = forkserver.enter()
    arm(request["failpoints"])
    child = Child(request)
    child.send(protocol.Confined(type="confined"))
    spec = request["spec"]
    name, *arguments = spec.get("job", spec)["include"] or ["count"]
    try:
        report = getattr(child, name)(*arguments)
    except ParedError as error:
        child.send(protocol.Failure(type="error", code=error.code, detail=error.detail))
    else:
        failpoint("child.reported")
        child.send(protocol.Result(type="result", report=report.model_dump(mode="json")))


class Child:
    """The behaviours, each of which makes a report."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request

    def send(self, message: protocol.Message) -> None:
        os.write(self._request["messages"], protocol.encode(message))

    def count(self) -> Report:
        """To three, each step only when the worker has the checkpoint of the one before."""
        count = self._resumed()
        for step in range(count + 1, 4):
            path = self._checkpoint(step)
            while path.exists():
                time.sleep(0.01)
            count = step
        return self._report(f"counted to {count}")

    def slow(self, steps: str, pause: str) -> Report:
        """Counts on, whether or not anybody takes the checkpoints."""
        first = self._resumed()
        self.send(protocol.Log(type="log", text=f"starting at {first}"))
        for step in range(first, int(steps)):
            time.sleep(float(pause))
            self._checkpoint(step + 1)
        return self._report(f"counted to {steps}")

    def succeed(self) -> Report:
        return self._report("done")

    def make_plan(self, seconds: str) -> Plan:
        time.sleep(float(seconds))
        size = Size(parameters=1, nonzero_parameters=1, file_bytes=1)
        return Plan(verdict="fine", amount=0.5, exact=True, before=size, after=size, files={}, layers=[])

    def lose_card(self, asked: str) -> Report | Plan:
        """Only where there was one: as a GPU that falls off the bus."""
        if self._request["device"] == "cuda":
            raise DeviceUnavailable("the GPU is lost")
        return self.make_plan("0") if asked == "plan" else self.succeed()

    def staged(self) -> Report:
        """Tells its stages."""
        for name in ("validate", "compress", "export"):
            self.send(protocol.Stage(type="stage", name=name))
            time.sleep(0.05)
        return self.succeed()

    def raise_named(self) -> Report:
        raise NothingToPrune("fc is the classifier")

    def leave(self) -> Report:
        os._exit(3)

    def hang(self) -> Report:
        while True:
            time.sleep(1)

    def _resumed(self) -> int:
        resume = self._request["resume"]
        return int(Path(resume["path"]).read_text()) if resume else 0

    def _checkpoint(self, step: int) -> Path:
        path = Path("checkpoints", str(step))
        path.with_suffix(".part").write_text(str(step))
        failpoint("child.checkpoint.written")
        path.with_suffix(".part").replace(path)
        failpoint("child.checkpoint.renamed")
        self.send(protocol.Checkpoint(type="checkpoint", step=step))
        return path

    def _report(self, result: str) -> Report:
        """With a warning that names where latency is to be measured, after those that the job brings."""
        Path("out", "model.pt").write_text(result)
        device = self._request["device"]
        timed_on = self._request["spec"]["latency_device"] or device
        size = Measurement(parameters=1, nonzero_parameters=1, macs=1, file_bytes=1, compressed_bytes=1)
        made = Reproduce(spec={}, seed=0, versions={}, device=device, threads=1, inputs={})
        warnings = [*self._request["notes"], timed_on]
        return Report(type="prune", verdict="fine", before=size, after=size, reproduce=made, warnings=warnings)


if __name__ == "__main__":
    main()
