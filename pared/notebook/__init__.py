"""What a notebook shows of reports, plans, uploads and jobs: small pieces of HTML that need no other file.

No text of theirs is believed: each is escaped, cut short and without control characters, as in `pared.report_page`.
"""
