"""What must not load torch does not: looked up in `sys.modules` of real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.processes import environment
from tests.support.stack import Stack

HEAVY = ("torch", "numpy", "sklearn", "onnx")


STARTS = {
    "contracts": "import pared.specs, pared.reports, pared.errors, pared.job_types",
    "client and command line": "import pared, pared.client, pared.cli",
    "state and supervisor": "import pared.state.sweep, pared.state.keys, pared.up, pared.cli.demo",
    "migrations": (
        "import migrations; from pared.state.session import migrate; from pared.state.settings import Settings; "
        "migrate(Settings())"
    ),
    "service": "import service.app; from pared.state.settings import Settings; service.app.create_app(Settings())",
}


def test_torch_is_not_imported(tmp_path: Path) -> None:
    """By none of these, in one process: to import them five times takes seconds."""
    loaded = f"[each for each in {HEAVY!r} if each in sys.modules]"
    code = "\n".join(["import sys", *(f"{start}\nprint({name!r}, {loaded})" for name, start in STARTS.items())])
    env = environment(PARED_DATA_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} []" for name in STARTS]


def test_a_running_api_has_not_mapped_torch(embedded: Stack) -> None:
    assert embedded.http.get("/readyz").status_code == 200
    libraries = {mapped.path for mapped in embedded.api.psutil.memory_maps()}
    assert not [path for path in libraries if "libtorch" in path]
