"""Measures one file of a model in a process of its own: `python -I measured.py FILE TEST.npz THREADS [UPLOAD]`.

It needs torch alone and shares no code with pared: packed files are read by the reader of docs/packed-format.md.
"""

import json
import re
import statistics
import struct
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def main(file: Path, test: Path, threads: int, upload: Path | None) -> None:
    """Print the figures as JSON: counts, bytes, accuracy and, with an upload, the share left of its time."""
    torch.set_num_threads(threads)
    arrays = np.load(test)
    x, y = torch.from_numpy(arrays["x_test"]), torch.from_numpy(arrays["y_test"])
    model, parameters = load(file)
    with torch.no_grad():
        right = int((model(x).argmax(1) == y).sum())
    counter = FlopCounterMode(display=False)
    with counter:
        model(x[:1])
    figures = {
        "parameters": sum(tensor.numel() for tensor in parameters),
        "nonzero_parameters": sum(int(torch.count_nonzero(tensor)) for tensor in parameters),
        "macs": counter.get_total_flops() // 2,
        "file_bytes": file.stat().st_size,
        "accuracy": right / len(y),
        "latency": None if upload is None else share_of_time(load(upload)[0], load(file)[0], x[:32]),
    }
    print(json.dumps(figures))


def load(file: Path) -> tuple:
    """A model that runs, and its parameters."""
    if file.suffix == ".pt2":
        program = torch.export.load(file)
        return program.module(), list(program.parameters())
    if file.suffix == ".pt":
        script = torch.jit.load(file)
        return script, list(script.parameters())
    if file.suffix == ".packed":
        document = (Path(__file__).parent.parent / "docs" / "packed-format.md").read_text()
        reader: dict = {}
        exec(re.search(r"```python\n(.*?)```", document, re.DOTALL)[1], reader)
        tensors, architecture = reader["read"](file)
        state = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    else:
        state = safetensors(file.read_bytes())
        architecture = json.loads(file.with_name("architecture.json").read_text())
    layers = (
        (name[0] if name else str(number), getattr(nn, kind)(**given))
        for number, (kind, given, *name) in enumerate(architecture["layers"])
    )
    model = nn.Sequential(OrderedDict(layers))
    model.load_state_dict(state)
    return model.eval(), list(model.parameters())


def safetensors(data: bytes) -> dict:
    """The float32 tensors of a safetensors file."""
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + length]), memoryview(bytearray(data[8 + length :]))
    header.pop("__metadata__", None)
    return {
        name: torch.frombuffer(body[slice(*entry["data_offsets"])], dtype=torch.float32).reshape(entry["shape"])
        for name, entry in header.items()
    }


def share_of_time(before: nn.Module, after: nn.Module, batch: torch.Tensor) -> float:
    """Median time of the second over that of the first, run in turns."""
    times: tuple[list, list] = ([], [])
    with torch.inference_mode():
        for _ in range(300):
            for model, taken in zip((before, after), times, strict=True):
                began = time.perf_counter()
                model(batch)
                taken.append(time.perf_counter() - began)
    return statistics.median(times[1][20:]) / statistics.median(times[0][20:])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]) if len(sys.argv) > 4 else None)
