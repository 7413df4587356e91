"""The report of a job as one HTML file, for people who were not there: no script, no other file, safe to open.

`pared report --html`, `Report.to_html` and the service write the same bytes.
"""

from __future__ import annotations

from pared.report_page.page import CONTENT_SECURITY_POLICY, STYLE, TEMPLATES, environment, render, told

__all__ = ["CONTENT_SECURITY_POLICY", "STYLE", "TEMPLATES", "environment", "render", "told"]
