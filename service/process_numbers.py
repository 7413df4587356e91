"""Owns what the operating system says of several API processes together: memory, processor time, open files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_FIRST_CHILDREN_TIME = 13
"""Of the fields in `/proc/…/stat` behind the name: what ended children computed, and the system for them."""


class Siblings(Collector):
    """Sums over the processes that this one's parent has started; of their starts, the first."""

    def collect(self) -> Iterator[Metric]:
        """What `ProcessCollector` has for one process."""
        parent = Path(f"/proc/{os.getppid()}")
        try:
            children = (parent / "task" / parent.name / "children").read_text().split()
        except OSError:  # a kernel that does not tell
            return
        sums: dict[str, Metric] = {}
        for child in children:
            for family in ProcessCollector(pid=partial(str, child), registry=None).collect():
                of_all = sums.setdefault(family.name, family)
                if of_all is family:
                    continue
                (before,), (sample,) = of_all.samples, family.samples
                both = (before.value, sample.value)
                value = min(both) if family.name == "process_start_time_seconds" else sum(both)
                of_all.samples = [before._replace(value=value)]
        # Of those that died: so that the sum never falls.
        fields = (parent / "stat").read_text().rpartition(")")[2].split()
        ended_s = sum(map(int, fields[_FIRST_CHILDREN_TIME : _FIRST_CHILDREN_TIME + 2])) / os.sysconf("SC_CLK_TCK")
        if "process_cpu_seconds" in sums:
            (sample,) = sums["process_cpu_seconds"].samples
            sums["process_cpu_seconds"].samples = [sample._replace(value=sample.value + ended_s)]
        yield from sums.values()

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that to register it looks at nothing."""
        return iter(())
