"""A report of a job with nothing in it but what each has."""

from __future__ import annotations

from pared.reports import Measurement, Report, Reproduce


def smallest_report(verdict: str) -> Report:
    """Of a job that pruned a model of one parameter."""
    size = Measurement(parameters=1, nonzero_parameters=1, macs=1, file_bytes=1, compressed_bytes=1)
    made = Reproduce(spec={}, seed=0, versions={}, device="cpu", threads=1, inputs={})
    return Report(type="prune", verdict=verdict, before=size, after=size, reproduce=made)
