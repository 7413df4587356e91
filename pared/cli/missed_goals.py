"""Owns what the command line says of a goal that was missed: what came nearest, and what to type next."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence

from pared.reports import Goal, Plan, Report
from pared.specs.targets import missed

_QUALITY = ("max_quality_drop", "max_accuracy_drop")


def told_of_missed_goal(report: object, job_id: str | None = None, typed: Sequence[str] | None = None) -> str | None:
    """What to say of a report, or a plan, whose goal is not met; None: it is met, or there is none.

    Args:
        job_id: of a job whose files have not been downloaded.
        typed: the command line, for the same one with a goal that can be met; None: this process's.
    """
    if not isinstance(report, Report | Plan) or report.goal is None or report.goal.status != "infeasible":
        return None
    goal = report.goal
    int8 = isinstance(report, Report) and report.type == "quantize"
    removed = "" if goal.amount is None or int8 else f", {100 * goal.amount:.3g} % removed,"
    would = "would be" if isinstance(report, Plan) else "is"
    lines = [f"{goal.sentence} The result{removed} {would} the nearest that was found."]
    if job_id is not None:
        lines.append(f"  to have it all the same: pared jobs download {job_id}")
    if options := _reached(goal):
        line = _again(sys.argv[1:] if typed is None else typed, options)
        lines.append(f"  next: {line}" if line else f"  next: ask for what it reaches, {_as_options(options)}")
    return "\n".join(lines)


def _reached(goal: Goal) -> dict[str, str]:
    """The goals that were missed, each with what was reached, in percent; without those that nothing was gained of."""
    reached = {name: goal.reached[name] for name in missed(goal.target, goal.reached) if name in goal.reached}
    return {
        name: f"{math.ceil(1000 * value - 1e-9) / 10:g}%"
        for name, value in reached.items()
        if name in _QUALITY or value < 1
    }


def _as_options(options: dict[str, str]) -> str:
    return " ".join(
        f"--{name.replace('_', '-')} {value}" if name in _QUALITY else f"--target {name}={value}"
        for name, value in options.items()
    )


def _again(typed: Sequence[str], options: dict[str, str]) -> str | None:
    """The command line with these goals in the place of those that were typed; None: it did not say them."""
    words = list(typed)
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        for at, word in enumerate(words):
            if name in _QUALITY and word == option and at + 1 < len(words):
                words[at + 1] = value
            elif name in _QUALITY and word.startswith(f"{option}="):
                words[at] = f"{option}={value}"
            elif name not in _QUALITY and word.removeprefix("--target=").startswith(f"{name}="):
                words[at] = f"{'--target=' if word.startswith('--') else ''}{name}={value}"
            else:
                continue
            break
        else:
            return None
    return shlex.join(["pared", *words])
