"""`python -m pared`, which is `pared` where no script directory is on PATH."""

from __future__ import annotations

from pared.cli import main

main()
