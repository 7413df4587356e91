"""Loads and runs result files where there is torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


class CleanProcess:
    """A process with torch alone, kept for all cells because importing torch takes seconds."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Args: device: where the files run."""
        self.folder, self.device = folder, device
        script = Path(__file__).with_name("clean.py")
        command = [sys.executable, "-I", str(script)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)

    def run(self, file: bytes, name: str = "model.pt", **inputs: torch.Tensor) -> dict[str, Any]:
        """Load the file there and run it on each of the inputs."""
        (self.folder / name).write_bytes(file)
        np.savez(self.folder / "inputs.npz", **{name: x.numpy() for name, x in inputs.items()})
        request = {"file": str(self.folder / name), "inputs": str(self.folder / "inputs.npz"), "device": self.device}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert "error" not in reply, reply["error"]
        return reply
