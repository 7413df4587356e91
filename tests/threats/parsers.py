"""The parsers of bytes that strangers send: what each is given to begin with, and what it may answer."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pared.errors import ParedError

IN_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class Parser:
    """One parser.

    `seeds` makes good inputs, which fuzzing begins with. `parse` raises what a parser must not: anything but a refusal.
    """

    seeds: Callable[[], list[bytes]]
    parse: Callable[[bytes], None]
    runs: int = 40
    """Damaged inputs that are tried in every run of the tests; 0: none, for it takes seconds to make a good one."""


def request(**headers: bytes) -> Any:
    """A request with these headers, as the server hands it on."""
    from fastapi import Request

    named = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "headers": named})


def refusable(parse: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    """The same, where an error that is told to the sender is an answer."""

    def tried(content: bytes) -> None:
        with contextlib.suppress(ParedError):
            parse(content)

    return tried


# -- in the API's process -----------------------------------------------------------------------


def _range(content: bytes) -> None:
    from service.byte_ranges import requested_range

    size = 1000
    found = requested_range(request(range=content), '"tag"', size)
    assert found is None or 0 <= found.start < found.end <= size


def _conditions(content: bytes) -> None:
    from service.etags import client_has, requires_other
    from service.long_polling import requested_wait_s

    asked = request(if_none_match=content, if_match=content, prefer=content, if_range=content)
    client_has(asked, 'W/"tag"')
    requires_other(asked, '"tag"')
    assert 0 <= requested_wait_s(asked) <= 60


def _origins(content: bytes) -> None:
    from pared.state.settings import Settings
    from service.origins import from_this_machine, refusal

    settings = Settings(trusted_proxies="127.0.0.1")
    for name in ("host", "origin", "x_forwarded_for", "forwarded"):
        asked = request(**({"host": b"127.0.0.1"} | {name: content}))
        asked.scope.update(client=("127.0.0.1", 1), http_version="1.1")
        from_this_machine(asked, settings)
        refusal("POST", asked.headers, settings)


def _tus(content: bytes) -> None:
    from service.routes.tus import _announced, _checksum

    text = content.decode("latin1")  # as headers come
    with contextlib.suppress(ParedError):
        _checksum(text)
    _announced(5, text)


def _spec(content: bytes) -> None:
    from service.job_specs import _spec_in

    _spec_in(content).model_dump_json()


def _architecture(content: bytes) -> None:
    from service.new_uploads import parse_architecture, part_of_checkpoint

    text = content.decode(errors="replace")
    with contextlib.suppress(ParedError):
        part_of_checkpoint("prefix", text)
    parse_architecture(text)


class _Nowhere:
    def write(self, data: Any) -> None:
        pass


def _form(content: bytes) -> None:
    from service.upload_stream import _Form

    form = _Form(b"b", _Nowhere())  # type: ignore[arg-type]
    half = len(content) // 2
    form.write(content[:half])
    form.write(content[half:])
    form.finish()


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _form_seed() -> bytes:
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="m.pt"\r\n\r\nabc\r\n'
    return file + b'--b\r\nContent-Disposition: form-data; name="prefix"\r\n\r\nx.\r\n--b--\r\n'


def _specs() -> list[bytes]:
    model, data = "mdl_" + "0" * 26, "dst_" + "0" * 26
    return [
        json.dumps(each).encode()
        for each in (
            {"type": "prune", "model": model, "amount": 0.5, "amounts": {"fc*": 0.2}, "outputs": ["onnx"]},
            {"type": "prune", "model": model, "dataset": data, "target": {"macs": 0.5}, "retrain": {"epochs": 1}},
            {"type": "distill", "teacher": model, "student": {"layers": [["Linear", {"in_features": 3}]]}},
            {"type": "quantize", "model": model, "method": "static"},
            {"type": "pipeline", "model": model, "steps": [{"type": "prune", "amount": 0.5}]},
        )
    ]


# -- in the worker, of what a child says --------------------------------------------------------


def _line(content: bytes) -> None:
    from worker.protocol import Malformed, Reader

    with contextlib.suppress(Malformed):
        for message in Reader().feed(content + b"\n"):
            json.dumps(message.model_dump(mode="json"), allow_nan=False).encode()


def _lines() -> list[bytes]:
    return [
        b'{"type":"stage","name":"compress"}\n{"type":"progress","fraction":0.5,"epoch":1,"epochs":2}',
        b'{"type":"metric","name":"loss","value":0.5,"step":1,"phase":"retrain"}\n{"type":"log","text":"\\ud83d a"}',
        b'{"type":"result","report":{"a":[1,2.5,null,{"b":"c"}]}}\n{"type":"error","code":"x","detail":"y"}',
    ]


# -- in the sandbox, of files -------------------------------------------------------------------


@functools.cache
def _place() -> Path:
    return Path(tempfile.mkdtemp(dir=IN_MEMORY if Path(IN_MEMORY).is_dir() else None)) / "file"


def of_file(parse: Callable[[Path], Any]) -> Callable[[bytes], None]:
    """A parser of files."""

    def tried(content: bytes) -> None:
        _place().write_bytes(content)
        with contextlib.suppress(ParedError):
            parse(_place())

    return tried


def _safetensors(path: Path) -> None:
    from pared.weights.safetensors import BadSafetensors, read_header

    with contextlib.suppress(BadSafetensors):
        header = read_header(path)
        assert sum(entry.size_bytes for entry in header.tensors) + len(header.head) == path.stat().st_size


def _zip(path: Path) -> None:
    from pared.compression.loading.archives import BadArchive, zip_directory

    with contextlib.suppress(BadArchive):
        entries = zip_directory(path, max_unpacked=1 << 20)
        assert sum(entry.file_size for entry in entries) <= 1 << 20


def _recognised(path: Path) -> str:
    from pared.compression.loading.file_format import recognise

    return recognise(path)


def _weights(path: Path) -> None:
    from pared.compression.loading.opening import load_weights
    from pared.compression.work import ModelFile

    load_weights(ModelFile(path, "m", "0" * 64))


def _program(path: Path) -> None:
    from pared.compression.loading.program_files import read_program

    if _recognised(path) == "exported_program":
        read_program(path)


def _onnx(path: Path) -> None:
    from pared.compression.loading.onnx.reading import read_onnx

    read_onnx(path)


def _packed(path: Path) -> None:
    from pared.weights.packed import DamagedPacked, NewerPacked, NotPacked, PackedTooLarge, read

    with contextlib.suppress(DamagedPacked, NewerPacked, NotPacked, PackedTooLarge):
        read(path, max_bytes=1 << 20)


def _data(path: Path) -> None:
    from pared.compression.data import inspect_dataset
    from pared.compression.work import DatasetFile

    inspect_dataset(DatasetFile(path, "data", memory_bytes=1 << 28))


def _state(**options: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    value = {"state_dict": {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}, "epoch": 3}
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _tensors() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}, {"format": "pt"})


def _script() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), buffer)
    return buffer.getvalue()


def _exported() -> bytes:
    import torch

    from tests.support.models import zoo

    return zoo.exported(torch.nn.Linear(3, 2), torch.ones(2, 3))


def _onnx_seed() -> bytes:
    from tests.support.files.onnx import like_sklearn

    return like_sklearn().SerializeToString()


def _packed_seed() -> bytes:
    from pared.weights.packed import write
    from tests.support.arrays import awkward

    write(_place(), dict(list(awkward().items())[:6]))
    return _place().read_bytes()


def _folder() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", '{"architectures": ["BertModel"]}')
        archive.writestr("model.safetensors", _tensors())
    return buffer.getvalue()


def _npz() -> bytes:
    import numpy as np

    from tests.support.models import zoo

    return zoo.npz(np.ones((12, 3), np.float32), np.arange(12) % 2)


def _table() -> list[bytes]:
    from tests.support import texts

    rows = "".join(f"{i},{i * 0.5},{i % 2}\n" for i in range(12)).encode()
    records = [{"x": [i, 1.5], "y": i % 2} for i in range(12)]
    words = [{"text": f"some words {i}", "y": "ab"[i % 2]} for i in range(12)]
    labels = [{"y": [i, 0.5]} for i in range(12)]
    return [b"a,b,y\n" + rows, rows.replace(b",", b";"), *map(texts.lines, (records, words, labels))]


def _parquet() -> list[bytes]:
    from tests.support import texts

    return [texts.parquet_of(a=list(range(12)), y=[0, 1] * 6)]


def _pictures() -> bytes:
    from PIL import Image

    one, buffer = io.BytesIO(), io.BytesIO()
    Image.new("L", (4, 4), "white").save(one, "PNG")
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(8):
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", one.getvalue())
    return buffer.getvalue()


PARSERS: dict[str, Parser] = {
    "ranges": Parser(lambda: [b"bytes=0-9", b"bytes=-5", b"bytes=990-", b"bytes=0-1,3-4"], refusable(_range)),
    "conditions": Parser(lambda: [b'"tag", W/"other"', b"*", b"respond-async, wait=30"], _conditions),
    "origins": Parser(lambda: [b"127.0.0.1:8000", b"http://[::1]:80", b"for=1.2.3.4;host=a, 10.0.0.1"], _origins),
    "tus headers": Parser(
        lambda: [f"kind {_b64('model')},filename {_b64('m.pt')},sha256 {_b64('0' * 64)}".encode(), b"sha1 AAAA"],
        refusable(_tus),
    ),
    "job specs": Parser(_specs, refusable(_spec)),
    "architectures": Parser(
        lambda: [b"resnet50", b'{"name":"lenet5","kwargs":{"a":1}}', b'{"layers":[["Linear",{"in_features":3},"a"]]}'],
        refusable(_architecture),
    ),
    "forms": Parser(lambda: [_form_seed()], refusable(_form)),
    "lines of a child": Parser(_lines, _line),
    "safetensors headers": Parser(lambda: [_tensors()], of_file(_safetensors)),
    "zip directories": Parser(lambda: [_script(), _npz()], of_file(_zip)),
    "kinds of model files": Parser(lambda: [_script(), _folder(), _onnx_seed(), b"GGUF"], of_file(_recognised)),
    "state dicts": Parser(
        lambda: [_state(), _state(_use_new_zipfile_serialization=False), _tensors()], of_file(_weights)
    ),
    "exported programs": Parser(lambda: [_exported()], of_file(_program), runs=0),
    "ONNX": Parser(lambda: [_onnx_seed()], of_file(_onnx)),
    "packed files": Parser(lambda: [_packed_seed()], of_file(_packed)),
    "arrays": Parser(lambda: [_npz()], of_file(_data)),
    "tables and texts": Parser(_table, of_file(_data)),
    "Parquet": Parser(_parquet, of_file(_data), runs=10),
    "pictures": Parser(lambda: [_pictures()], of_file(_data), runs=10),
}
