"""What must not load torch does not: looked up in `sys.modules` of real processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.processes import environment
from tests.support.stack import Stack

HEAVY = ("torch", "numpy", "sklearn", "onnx")


@pytest.mark.parametrize(
    "start",
    [
        "import pared, pared.client, pared.cli",
        "import pared.specs, pared.reports, pared.errors, pared.job_types",
        "import service.app; from pared.state.settings import Settings; service.app.create_app(Settings())",
        "import pared.state.sweep, pared.state.keys, pared.up, pared.cli.demo",
        (
            "import migrations; from pared.state.session import migrate; from pared.state.settings import Settings; "
            "migrate(Settings())"
        ),
    ],
    ids=["client and command line", "contracts", "service", "state and supervisor", "migrations"],
)
def test_torch_is_not_imported(start: str, tmp_path: str) -> None:
    code = f"{start}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    env = environment(PARED_DATA_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_running_api_has_not_mapped_torch(embedded: Stack) -> None:
    assert embedded.http.get("/readyz").status_code == 200
    libraries = {mapped.path for mapped in embedded.api.psutil.memory_maps()}
    assert not [path for path in libraries if "libtorch" in path]
