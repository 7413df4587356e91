"""Runs in a clean process (`python -I`) without this project: loads result files as their format's own library does.

Reads a path a line; writes `{"parameters": …, "dtypes": […]}` (parameters only where the format tells them from other
tensors), or `{"error": …}`.
"""

import json
import sys
import tempfile
import zipfile


class Absent:
    """Makes this repository's packages impossible to import, however they are installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pared", "service", "worker", "migrations", "tests"}:
            raise ImportError(f"{name} does not exist here")


def load(path: str) -> dict:
    """Load one file."""
    if path.endswith(".zip"):
        return of_folder(path)
    if path.endswith(".pt2"):
        return of_module(list(torch.export.load(path).module().parameters()))
    if path.endswith(".onnx"):
        import onnxruntime

        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return {"parameters": None, "dtypes": []}
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return of_tensors(list(load_file(path).values()))
    try:
        return of_module(list(torch.jit.load(path).parameters()))
    except RuntimeError:  # a checkpoint, with whatever its owner put into it
        return of_tensors([each for each in leaves(torch.load(path, weights_only=False)) if torch.is_tensor(each)])


def of_folder(path: str) -> dict:
    """What is told of the Hugging Face folder in a zip, whose model is of the class that its config names."""
    import transformers

    with tempfile.TemporaryDirectory() as where:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(where)
        (kind,) = transformers.AutoConfig.from_pretrained(where).architectures
        model, loading = getattr(transformers, kind).from_pretrained(where, output_loading_info=True)
    new = loading["missing_keys"]  # which the class has and the folder does not, such as a pooler
    return of_module([tensor for name, tensor in model.named_parameters() if name not in new])


def leaves(value):
    """What dicts, lists and tuples hold."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for each in value for leaf in leaves(each)] if isinstance(value, (list, tuple)) else [value]


def of_module(parameters: list) -> dict:
    """What is told of a module, by its parameters."""
    return of_tensors(parameters) | {"parameters": sum(p.numel() for p in parameters)}


def of_tensors(tensors: list) -> dict:
    """What is told of tensors alone."""
    return {"parameters": None, "dtypes": sorted({str(t.dtype) for t in tensors if t.is_floating_point()})}


sys.meta_path.insert(0, Absent())
import torch  # noqa: E402 - only after our own packages are out of reach

for line in sys.stdin:
    try:
        reply = load(line.strip())
    except Exception as error:  # noqa: BLE001 - the test shows it
        reply = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), flush=True)
