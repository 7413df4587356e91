"""Plans of jobs, and whether a job has done what was planned."""

from __future__ import annotations

from math import prod

import pytest

from pared.compression.jobs.plans import plan
from pared.compression.work import Work
from pared.reports import Plan, Report
from pared.specs import PipelineSpec, PlanSpec, PruneSpec
from tests.support.torch_forks import in_a_fork


def plan_of(job: PruneSpec | PipelineSpec, work: Work) -> Plan:
    """The plan, made in a fork, as in the service."""
    made: Plan = in_a_fork(plan, PlanSpec(type="plan", job=job), work)
    return made


def assert_kept(plan: Plan, report: Report, written: dict[str, int]) -> None:
    """All that the plan calls exact came out so."""
    assert (plan.before.parameters, plan.before.macs) == (report.before.parameters, report.before.macs)
    assert plan.before.file_bytes == report.before.file_bytes
    if all(file.exact for file in plan.files.values()):
        assert plan.after.file_bytes == report.after.file_bytes
    assert (plan.goal, len(plan.frontier)) == (report.goal, len(report.frontier))
    assert (plan.after.parameters, plan.after.macs) == (report.after.parameters, report.after.macs)
    assert set(plan.files) == set(written)
    for name, file in plan.files.items():
        if file.exact:
            assert file.size_bytes == written[name], name
    for layer, done in zip(plan.layers, report.layers, strict=True):
        assert (layer.name, layer.shape_before, layer.shape_after) == (done.name, done.shape_before, done.shape_after)
        assert (layer.removed_units, layer.reason) == (len(done.removed_units or []), done.reason)
        if layer.zeroed_weights:
            assert layer.zeroed_weights == pytest.approx(done.sparsity * prod(layer.shape_after))
