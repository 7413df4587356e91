"""Runs in a clean process (`python -I`) that has torch and numpy alone: loads result files and answers what they do.

Reads JSON lines `{"file", "inputs", "device"}`: a TorchScript file or `.pt2`, an `.npz` of named input batches, and
where it runs. Writes for each `{"shapes", "parameters", "zeros", "outputs"}`, outputs as nested lists (in dicts, tuples
and lists as the model returns them); or `{"error"}`.
"""

import json
import sys


class Absent:
    """Makes this repository's packages impossible to import, however they are installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pared", "service", "worker", "migrations", "tests"}:
            raise ImportError(f"{name} does not exist here")


def answer(request: dict) -> dict:
    """Load one file and run it."""
    device = request["device"]
    if request["file"].endswith(".pt2"):
        program = torch.export.load(request["file"])
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module = program.module()
    else:
        module = torch.jit.load(request["file"], map_location=device).eval()
    with torch.no_grad():
        outputs = {name: module(torch.from_numpy(x).to(device)) for name, x in np.load(request["inputs"]).items()}
    matrices = [p for p in module.parameters() if p.dim() >= 2]
    return {
        "shapes": {name: plain(output, lambda each: list(each.shape)) for name, output in outputs.items()},
        "outputs": {name: plain(output, lambda each: each.tolist()) for name, output in outputs.items()},
        "parameters": sum(p.numel() for p in module.parameters()),
        "zeros": sum(int((p == 0).sum()) for p in matrices),
        "of": sum(p.numel() for p in matrices),
    }


def plain(output, of_tensor):
    """An output, whatever it is made of, with something plain in the place of each tensor."""
    if isinstance(output, dict):
        return {name: plain(each, of_tensor) for name, each in output.items()}
    return [plain(each, of_tensor) for each in output] if isinstance(output, (tuple, list)) else of_tensor(output)


sys.meta_path.insert(0, Absent())
import numpy as np  # noqa: E402 - only after our own packages are out of reach
import torch  # noqa: E402

torch.backends.cudnn.allow_tf32 = False  # to compare what different devices answer

for line in sys.stdin:
    try:
        reply = answer(json.loads(line))
    except Exception as error:  # noqa: BLE001 - the test shows it
        reply = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), flush=True)
