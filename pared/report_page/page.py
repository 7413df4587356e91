"""Fills the templates. Whatever they print is made harmless here: escaped, and without control characters."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pared.report_page import curves, numbers, sections, texts
from pared.reports import Report
from pared.terminal import printable
from pared.version import __version__
from pared.wording import metric_name

TEMPLATES = Path(__file__).parent / "templates"
"""`macros.html.j2` draws charts and tables for other pages, too; they look as `STYLE` says. `report_tiles.html.j2`
and `report_sections.html.j2` are the report below its verdict, made of what `told` gives."""
STYLE = (TEMPLATES / "style.css").read_text(encoding="utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_IN_FILE = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"
"""The policy that the page itself names, which also holds where it was saved: its own style, and nothing else."""
CONTENT_SECURITY_POLICY = f"{_IN_FILE}; frame-ancestors 'none'"
"""The policy for the header of an answer, which can ask for more.

It is without `sandbox`: by the HTML standard such a page is not shown under our Cross-Origin-Opener-Policy.
"""


def render(report: Report) -> str:
    """The page, of less than 1 MB whatever the report holds. The same report gives the same page."""
    return environment().get_template("report.html.j2").render(_context(report))


def told(report: Report, pick: curves.Pick | None = None, *, most_layers: int = sections.MOST_LAYERS) -> dict[str, Any]:
    """What the parts of the template show: verdict, tiles and sections.

    Args:
        pick: where a point that the search tried leads to; an empty text: nowhere.
        most_layers: rows of the table of layers.
    """
    warnings, more_warnings = texts.first(report.warnings, sections.MOST_SENTENCES, "warnings")
    failed, more_failed = texts.first(report.failed_outputs, sections.MOST_SENTENCES, "formats")
    steps, _ = texts.first(report.steps, sections.MOST_ROWS, "steps")
    layers, more_layers = sections.layer_rows(report.layers, most_layers)
    classes, more_classes, class_score = sections.class_rows(report)
    training, more_training = curves.training_charts(report)
    spec, more_spec = texts.spec_json(report.reproduce.spec)
    return {
        "type": texts.name(report.type),
        "task": "" if report.task is None else texts.name(report.task),
        "device": texts.name(report.reproduce.device),
        "verdict": texts.sentence(sections.verdict_without_goal(report), texts.PARAGRAPH),
        "goal": report.goal,
        "goal_sentence": "" if report.goal is None else texts.sentence(report.goal.sentence, texts.PARAGRAPH),
        "goal_amount": "" if report.goal is None else numbers.percent(report.goal.amount, 2),
        "goal_rows": [] if report.goal is None else list(sections.goal_rows(report.goal, report.after.quality)),
        "tiles": list(sections.tiles(report)),
        "warnings": [texts.sentence(warning) for warning in warnings],
        "more_warnings": more_warnings,
        "failed": [(texts.name(one.format), texts.sentence(one.detail)) for one in failed],
        "more_failed": more_failed,
        "measures": list(sections.measures(report)),
        "comparison": list(sections.comparison_sentences(report)),
        "quality_name": "" if report.after.quality is None else metric_name(report.after.quality.metric),
        "samples": "" if report.after.quality is None else numbers.count(report.after.quality.samples),
        "runtime": report.runtime,
        "search": curves.search_chart(report, pick),
        "points": curves.point_rows(report, pick),
        "steps": sections.step_rows(report) if report.steps else None,
        "step_verdicts": [
            (f"{number} {texts.name(step.type)}", texts.sentence(step.verdict)) for number, step in enumerate(steps, 1)
        ],
        "layers": layers,
        "more_layers": more_layers,
        "precisions": sections.precision_sentence(report.layers),
        "has_precision": any(layer.precision for layer in layers),
        "has_sensitivity": any(layer.sensitivity for layer in layers),
        "has_reason": any(layer.reason for layer in layers),
        "training": training,
        "more_training": more_training,
        "epochs": curves.epoch_rows(report),
        "best_epoch": report.best_epoch,
        "before_retraining": sections.before_retraining_sentence(report),
        "classes": classes,
        "more_classes": more_classes,
        "class_score": class_score,
        "outputs": sections.output_rows(report),
        "student": list(sections.student_sentences(report)),
        "teachers": sections.teacher_rows(report),
        "features": sections.feature_rows(report),
        "stages": sections.stage_rows(report),
        "machine": sections.machine_rows(report),
        "inputs": sections.digests(report.reproduce.inputs, "Input"),
        "results": sections.digests(report.reproduce.outputs, "Output"),
        "spec": spec,
        "more_spec": more_spec,
    }


def _context(report: Report) -> dict[str, Any]:
    style = Markup(STYLE)  # noqa: S704 - our own file, and the policy allows nothing else
    return told(report) | {"style": style, "policy": _IN_FILE, "version": __version__}


@cache
def environment(*more: Path) -> Environment:
    """Where templates are filled, so that nothing they print is markup or a command to a terminal.

    Args:
        more: folders of templates beside `TEMPLATES`.
    """
    return Environment(
        loader=FileSystemLoader([*more, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def _harmless(value: Any) -> Any:
    """What an expression of a template prints; it is escaped after this, unless it is our own markup."""
    if value is None:
        return ""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
