"""The stand-in for torch's compiler: it saves the import, and makes way where the compiler is wanted."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> None:
    lines = "import sys, torch; from worker import compiler; compiler.leave_out(); "
    done = subprocess.run([sys.executable, "-c", lines + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_training_and_counting_do_not_import_it() -> None:
    run(
        "from pared.compression.measure import count_macs; m = torch.nn.Linear(3, 2); x = torch.rand(4, 3);\n"
        "for kind in (torch.optim.SGD, torch.optim.Adam):\n"
        "    optimizer = kind(m.parameters(), lr=0.1); optimizer.zero_grad(); m(x).sum().backward(); optimizer.step()\n"
        "assert count_macs(m, (x,)) == 6\n"
        "assert 'torch._dynamo.eval_frame' not in sys.modules"
    )


def test_whoever_wants_it_gets_it() -> None:
    run(
        "import torch._dynamo.config; assert torch._dynamo.config.cache_size_limit;\n"
        "f = torch.compile(lambda x: x + 1, backend='eager'); assert f(torch.ones(1)) == 2\n"
        "assert 'torch._dynamo.eval_frame' in sys.modules"
    )
    run("from torch._dynamo import optimize; assert callable(optimize)")
