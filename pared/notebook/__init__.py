"""What a notebook shows of reports, plans, uploads and jobs: small pieces of HTML that need no other file.

No text of theirs is believed: each is escaped, cut short and without control characters, as in `pared.report_page`.
"""

from __future__ import annotations

from pared.notebook.fragments import (
    html_of_job,
    html_of_jobs,
    html_of_plan,
    html_of_report,
    html_of_upload,
    html_of_uploads,
)

__all__ = ["html_of_job", "html_of_jobs", "html_of_plan", "html_of_report", "html_of_upload", "html_of_uploads"]
