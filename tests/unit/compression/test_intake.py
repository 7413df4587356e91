from __future__ import annotations

import io
import json
import pickle
import random
import re
import struct
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from pared.compression import prune
from pared.compression.jobs.inspect import inspect
from pared.compression.loading import example_from_specs, guess_example_inputs, inspect_model, load_model
from pared.compression.loading.archives import BadArchive, zip_directory
from pared.compression.loading.file_format import refuse_damaged
from pared.compression.work import ModelFile, Work
from pared.errors import InvalidArchitecture, ParedError, ShapeMismatch, UnsupportedModel
from pared.specs import InspectSpec, TensorSpec
from tests.support.models import zoo

LINEAR = {"layers": [["Linear", {"in_features": 3, "out_features": 2}, "fc"]]}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 64, 5)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(self.drop(x).flatten(1))


class OneTensor(nn.Module):
    def forward(self, x):
        return x


class BakedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x).view(2, -1)


class ViewOfPairs(BakedBatch):
    """Its view begins with a written 2 that happens to be the batch size, and is no batch size."""

    def forward(self, x):
        return self.fc(x).t().reshape(2, -1).t()


class ViewOfWeights(BakedBatch):
    def forward(self, x):
        return self.fc(x) + self.fc.weight.view(2, 2, 2).sum((0, 2))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)
        self.b = nn.Linear(4, 3)

    def forward(self, x, z):
        return self.a(x) + self.b(z)


class Reader(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.words, self.memory = nn.Embedding(10, 8), kind(8, 12, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(12, 6), nn.Linear(6, 3)
        self.unused = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(self.memory(self.words(x))[0][:, -1]))) * self.scale


class Sums(nn.Module):
    """Most weights are of features that are summed up one after the other, so that none can go."""

    def __init__(self):
        super().__init__()
        self.sums, self.fc1, self.fc2 = nn.Linear(64, 64), nn.Linear(64, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(torch.cumsum(self.sums(x.flatten(1)), 1))))


EXAMPLE = torch.randn(2, 1, 8, 8)


@pytest.fixture
def upload(tmp_path):
    def write(content: bytes, architecture=None, name="model.bin"):
        path = tmp_path / name
        path.write_bytes(content)
        return ModelFile(path, name, "0" * 64, architecture)

    return write


def saved(value, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


def scripted(module=None) -> bytes:
    return zoo.saved(torch.jit.script((module or Net()).eval()))


def traced(module, *example) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zoo.saved(torch.jit.trace(module, example, check_trace=False))


# -- what opens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", zoo.FORMS)
@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_family_loads_answers_as_before_and_is_guessed_an_input(family, form, upload):
    torch.manual_seed(0)
    module = zoo.FAMILIES[family].make().eval()
    x = zoo.FAMILIES[family].inputs(7)
    match form:
        case "scripted":
            file = upload(scripted(module))
        case "traced":
            file = upload(traced(module, x[:2]))
        case _:
            file = upload(saved(module.state_dict()), zoo.architecture(family))
    loaded = load_model(file)
    torch.testing.assert_close(loaded.module(x), module(x))
    assert loaded.flavour == form
    assert loaded.file_bytes == file.path.stat().st_size
    assert not loaded.module.training
    guessed = guess_example_inputs(loaded)
    assert guessed is not None
    assert len(loaded.module(*guessed)) == 2


def test_all_formats_of_a_state_dict_load_alike(upload):
    state = {"fc.weight": torch.randn(2, 3), "fc.bias": torch.randn(2)}
    files = [
        saved(state),
        saved(state, _use_new_zipfile_serialization=False),
        safetensors_bytes(state),
        saved({"state_dict": state, "epoch": 3}),
        saved({"model_state_dict": state, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}),
        saved({f"module.{name}": tensor for name, tensor in state.items()}),
        saved({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}),
    ]
    for content in files:
        loaded = load_model(upload(content, LINEAR))
        assert torch.equal(loaded.module.fc.weight, state["fc.weight"])
        assert loaded.format == "state_dict"
    assert any("'module._orig_mod.' was taken off" in note for note in loaded.warnings)


def test_an_architecture_on_the_job_stands_in_for_the_uploads(upload):
    state = {"fc.weight": torch.randn(2, 3), "fc.bias": torch.randn(2)}
    assert load_model(upload(saved(state), "lenet5"), LINEAR).architecture == {"layers": LINEAR["layers"]}


def test_half_precision_becomes_float32_and_is_said(upload):
    state = {"fc.weight": torch.randn(2, 3).half(), "fc.bias": torch.randn(2).bfloat16()}
    loaded = load_model(upload(safetensors_bytes(state), LINEAR))
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert "bfloat16, float16" in loaded.warnings[0]
    script = load_model(upload(zoo.saved(torch.jit.script(nn.Linear(3, 2).double()))))
    assert script.module(torch.randn(1, 3)).dtype == torch.float32
    assert "float64" in script.warnings[0]


def test_how_a_torchscript_file_was_made_is_found_and_said(upload):
    net = Net().eval()
    assert load_model(upload(scripted(net))).flavour == "scripted"
    assert load_model(upload(scripted(net))).warnings == []

    in_eval = load_model(upload(traced(net, EXAMPLE)))
    assert in_eval.flavour == "traced"
    assert "batch-norm statistics stay" in in_eval.warnings[0]

    in_training = load_model(upload(traced(Net().train(), EXAMPLE)))
    assert "traced in training mode" in in_training.warnings[0]

    baked = load_model(upload(traced(BakedBatch().eval(), torch.randn(2, 4))))
    assert "view(2, -1)" in baked.warnings[0]

    for harmless in (ViewOfPairs(), ViewOfWeights()):
        assert load_model(upload(traced(harmless.eval(), torch.randn(2, 4)))).warnings == []

    frozen = load_model(upload(zoo.saved(torch.jit.freeze(torch.jit.script(net)))))
    assert frozen.flavour == "frozen"
    assert "before freezing" in frozen.warnings[0]
    assert inspect_model(frozen, (EXAMPLE,)).parameters == 0


def test_parameters_marked_as_fixed_are_known(upload):
    net = Net()
    net.conv.weight.requires_grad_(False)
    loaded = load_model(upload(scripted(net)))
    assert loaded.frozen_names == ["conv.weight"]
    inspection = inspect_model(loaded, (EXAMPLE,))
    assert inspection.parameters - inspection.trainable_parameters == 36


def test_several_inputs_are_guessed(upload):
    guessed = guess_example_inputs(load_model(upload(scripted(TwoInputs()))))
    assert [tuple(one.shape) for one in guessed] == [(2, 6), (2, 4)]


def test_example_inputs_follow_their_specs():
    specs = [TensorSpec(shape=[2, 3]), TensorSpec(shape=[2, 5], dtype="int64")]
    first, second = example_from_specs(specs)
    assert (first.shape, first.dtype) == ((2, 3), torch.float32)
    assert (second.shape, second.dtype) == ((2, 5), torch.int64)


# -- inspection ---------------------------------------------------------------------------------


def test_inspection_names_layers_shapes_and_what_can_be_pruned(upload):
    loaded = load_model(upload(scripted()))
    inspection = inspect_model(loaded, guess_example_inputs(loaded))
    layers = {layer.name: layer for layer in inspection.layers}
    assert inspection.inputs == [{"shape": [2, 1, 8, 8], "dtype": "float32"}]
    assert layers["conv"].weights["conv.weight"] == [4, 1, 3, 3]
    assert (layers["conv"].channels, layers["conv"].prunable_channels) == (4, True)
    assert not layers["fc"].prunable_channels
    assert "output" in layers["fc"].reason
    assert inspection.parameters == sum(p.numel() for p in Net().parameters())


def test_inspection_without_an_example_still_lists_layers(upload):
    inspection = inspect_model(load_model(upload(scripted())), None)
    assert [layer.name for layer in inspection.layers] == ["conv", "bn", "fc"]
    assert "could not be guessed" in inspection.warnings[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_and_unused_layers_are_listed_with_their_weights(kind, upload):
    loaded = load_model(upload(scripted(Reader(kind))))
    inspection = inspect_model(loaded, guess_example_inputs(loaded))
    layers = {layer.name: layer for layer in inspection.layers}
    assert sum(layer.parameters for layer in inspection.layers) == inspection.parameters
    memory = layers["memory"]
    assert memory.kind.startswith(kind.__name__.lower())
    assert memory.weights["memory.weight_hh_l0"][1] == 12
    assert (memory.channels, memory.prunable_channels) == (12, True)
    assert layers["unused"].reason == "not reached by the given inputs"
    assert (layers["scale"].kind, layers["scale"].parameters) == ("parameter", 3)
    assert layers["fc1"].prunable_channels


def test_tied_weights_are_listed_once(upload):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x):
            return self.out(self.words(x).mean(1))

    loaded = load_model(upload(scripted(Tied())))
    for example in (guess_example_inputs(loaded), None):
        inspection = inspect_model(loaded, example)
        assert sum(layer.parameters for layer in inspection.layers) == inspection.parameters == 80


def test_inspection_says_where_little_can_be_removed(upload):
    def warnings_of(module):
        loaded = load_model(upload(scripted(module)))
        return inspect_model(loaded, guess_example_inputs(loaded)).warnings

    # Removable are the 6 units of fc1: 6 × (64 + 1) weights of its own, 6 × 3 of fc2.
    (warning,) = warnings_of(Sums())
    share = 100 * 408 / sum(p.numel() for p in Sums().parameters())
    assert f"hold only {share:.1f} % of the parameters" in warning
    assert "rest is in sums (4,160), fc2 (3)" in warning
    (warning,) = warnings_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    assert warning.startswith("No channel of this model can be removed")
    assert warnings_of(Net()) == []


# -- what is refused ----------------------------------------------------------------------------


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    return buffer.getvalue()


def zipped(entries: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def quantized() -> bytes:
    class Quantized(nn.Module):
        def forward(self, x):
            return torch.dequantize(torch.quantize_per_tensor(x, 0.1, 0, torch.quint8))

    return scripted(Quantized())


def without_forward() -> bytes:
    class Helper(nn.Module):
        @torch.jit.export
        def helper(self, x: torch.Tensor) -> torch.Tensor:
            return x

    return zoo.saved(torch.jit.script(Helper()))


def unknown_operator() -> bytes:
    """TorchScript that calls an operator of a library that is not here."""
    source = io.BytesIO(scripted(OneTensor()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(".py"):
                content = content.replace(b"return x", b"return ops.torchvision.nms(x, x, 0.5)")
            new.writestr(entry.filename, content)
    return buffer.getvalue()


class Runs:
    def __reduce__(self):
        return (Path("/tmp/pared-pickle-ran").write_text, ("ran",))


REFUSED = {
    "pickled module": (lambda: saved(Net()), r"pickled nn\.Module \(.*Net\).*torch\.jit\.save"),
    "pickled module, old format": (lambda: saved(Net(), _use_new_zipfile_serialization=False), r"pickled nn\.Module"),
    "pickle that runs code": (lambda: saved({"fc.weight": Runs()}), "Python objects besides tensors"),
    "plain pickle": (lambda: pickle.dumps({"a": 1}), "Python pickle"),
    "plain pickle that runs code": (lambda: pickle.dumps(Runs()), "Python pickle"),
    "checkpoint with an object": (lambda: saved({"args": Path("x"), "w": torch.ones(1)}), r"pathlib"),
    "one tensor": (lambda: saved(torch.ones(3)), "holds one tensor, not a state dict"),
    "a list": (lambda: saved([1, 2]), "holds a list"),
    "no tensors": (lambda: saved({"epoch": 3}), "No state dict was found .*epoch"),
    "empty": (lambda: b"", "empty"),
    "random": (lambda: bytes(random.Random(0).randbytes(2000)), "not a model that pared knows"),
    "web page": (lambda: b"<!DOCTYPE html><html>", "web page"),
    "cut onnx": (lambda: b"\x08\x08\x12\x07pytorch\x1a", "ONNX file cannot be read .*cut off"),
    "gguf": (lambda: b"GGUF\x03\0\0\0", "GGUF"),
    "keras h5": (lambda: b"\x89HDF\r\n\x1a\n", "Keras"),
    "keras v3": (lambda: zipped({"config.json": b"{}", "model.weights.h5": b"x"}), "Keras"),
    "pt2": (lambda: zipped({"m/archive_format": b"pt2", "m/models/model.json": b"{}"}), r"\.pt2"),
    "npz": (npz, "data set"),
    "zip of text": (lambda: zipped({"readme.txt": b"hello"}), "readme.txt"),
    "gzip": (lambda: b"\x1f\x8b\x08\0", "gzip"),
    "json": (lambda: b'{"layers": []}', "JSON"),
    "git lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "truncated torchscript": (lambda: scripted()[:-100], "cut off"),
    "truncated state dict": (lambda: saved({"w": torch.ones(99)})[:700], "cut off"),
    "truncated safetensors": (lambda: safetensors_bytes({"w": torch.ones(99)})[:-9], "damaged"),
    "quantized": (quantized, r"quantized.*aten::quantize_per_tensor"),
    "quantized tensor": (
        lambda: saved({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}), "is quantized"),
    "complex": (lambda: saved({"w": torch.ones(3, dtype=torch.complex64)}), "is complex"),
    "no forward": (without_forward, "no forward method"),
    "unknown operator": (unknown_operator, r"torchvision::nms"),
    "stride 0": (lambda: saved({"w": torch.ones(1).expand(10**9)}), r"claims 1,000,000,000 elements"),
    "stride 0 in torchscript": (lambda: scripted(Expanded()), r"claims 1,000,000,000 elements"),
}  # fmt: skip


class Expanded(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("big", torch.ones(1).expand(10**9))

    def forward(self, x):
        return x + self.big[0]


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model_is_refused_with_advice(case, upload):
    make, says = REFUSED[case]
    with pytest.raises(UnsupportedModel, match=says):
        load_model(upload(make(), LINEAR))
    assert not Path("/tmp/pared-pickle-ran").exists()


def test_a_state_dict_alone_asks_for_an_architecture_and_lists_its_shapes(upload):
    with pytest.raises(InvalidArchitecture, match=r"fc\.weight \(2, 3\), fc\.bias \(2,\)"):
        load_model(upload(saved(nn.ModuleDict({"fc": nn.Linear(3, 2)}).state_dict())))


def test_missing_extra_and_wrongly_shaped_keys_are_listed(upload):
    state = {"fc.weight": torch.ones(2, 4), "head.bias": torch.ones(2)}
    with pytest.raises(ShapeMismatch) as refusal:
        load_model(upload(saved(state), LINEAR))
    text = refusal.value.detail
    assert "Missing from the file: fc.bias (2,)" in text
    assert "not in the architecture: head.bias (2,)" in text
    assert "fc.weight is (2, 4) in the file, (2, 3) in the architecture" in text


def test_weights_that_fit_but_for_their_names_get_the_names_as_a_hint(upload):
    state = {"net.0.weight": torch.ones(2, 3), "net.0.bias": torch.ones(2)}
    with pytest.raises(ShapeMismatch, match=r"only the names differ.*net\.0\.weight for fc\.weight"):
        load_model(upload(saved(state), LINEAR))


# -- damaged archives ---------------------------------------------------------------------------


def _with_a_flipped_bit(content: bytes, entry: zipfile.ZipInfo) -> bytes:
    """The archive with a bit of this entry's content changed, half way through."""
    name_length, extra_length = struct.unpack_from("<2H", content, entry.header_offset + 26)
    changed = bytearray(content)
    changed[entry.header_offset + 30 + name_length + extra_length + entry.compress_size // 2] ^= 0x10
    return bytes(changed)


def _forms_of_torch() -> dict[str, bytes]:
    linear = nn.Linear(4, 3)
    return {
        "scripted": scripted(),
        "state dict": saved(linear.state_dict()),
        "program": zoo.exported(linear, torch.ones(2, 4)),
    }


@pytest.mark.parametrize("form", ["scripted", "state dict", "program"])
def test_a_file_of_which_a_bit_has_flipped_is_refused_whichever_entry_it_is_in(form, upload):
    content = _forms_of_torch()[form]
    refuse_damaged(upload(content).path)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [entry for entry in archive.infolist() if entry.compress_size]
    assert any(re.search(r"data/0$|weight", entry.filename) for entry in entries)
    for entry in entries:
        with pytest.raises(UnsupportedModel, match=f"{re.escape(repr(entry.filename))} has changed"):
            refuse_damaged(upload(_with_a_flipped_bit(content, entry)).path)


def test_a_damaged_file_is_refused_by_an_inspection_and_by_the_library(upload, tmp_path):
    content = scripted()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (entry,) = [each for each in archive.infolist() if each.filename.endswith("data/0")]
    damaged = upload(_with_a_flipped_bit(content, entry))
    load_model(damaged)  # torch itself takes it
    with pytest.raises(UnsupportedModel, match="has changed since it was written"):
        inspect(InspectSpec(type="inspect", subject=f"mdl_{'0' * 26}"), Work({"model": damaged}, None, tmp_path))
    with pytest.raises(UnsupportedModel, match="has changed since it was written"):
        prune(damaged.path, amount=0.5)


def test_a_file_without_checksums_is_taken_as_it_is(upload):
    torch.serialization.set_crc32_options(False)
    try:
        content = saved(nn.Linear(4, 3).state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert not any(entry.CRC for entry in archive.infolist())
    refuse_damaged(upload(content).path)


def test_code_that_torch_opens_and_cannot_write_is_refused_with_a_reason(upload):
    def damaged(entries):
        return [
            (name, content[:1].replace(b"\x80", b"\xf0") + content[1:] if "debug_pkl" in name else content, method)
            for name, content, method in _stored(entries)
        ]

    loaded = load_model(upload(_rewritten(damaged, zoo.upload("mlp", "traced"))))
    notes = inspect_model(loaded, guess_example_inputs(loaded)).warnings
    assert any("cannot write it" in note and "A part of it is damaged" in note for note in notes), notes


# -- hostile archives ---------------------------------------------------------------------------


def _rewritten(change, content: bytes | None = None) -> bytes:
    """A good TorchScript archive written again by Python, with its entries changed."""
    with zipfile.ZipFile(io.BytesIO(content or scripted())) as good:
        entries = [(entry.filename, good.read(entry)) for entry in good.infolist()]
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        for name, changed, method in change(entries):
            archive.writestr(name, changed, method)
    return buffer.getvalue()


def _stored(entries):
    return [(name, content, zipfile.ZIP_STORED) for name, content in entries]


def test_an_archive_written_again_unchanged_still_loads(upload):
    assert load_model(upload(_rewritten(_stored))).flavour == "scripted"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: [*_stored(e), ("archive/data.pkl", b"x", zipfile.ZIP_STORED)], "two of its entries"),
        (lambda e: [*_stored(e), ("archive/../evil", b"x", zipfile.ZIP_STORED)], "unsafe"),
        (lambda e: [*_stored(e), ("/etc/evil", b"x", zipfile.ZIP_STORED)], "'/etc/evil' is unsafe"),
        (lambda e: [*_stored(e), ("other/file", b"x", zipfile.ZIP_STORED)], "one folder"),
        (lambda e: [(n, c, zipfile.ZIP_DEFLATED) for n, c in e], "compressed, which torch never does"),
        (lambda e: [*_stored(e), ("archive/code/bomb.py", bytes(300 << 20), zipfile.ZIP_DEFLATED)], "unpacks to"),
        (lambda e: [(n, c, zipfile.ZIP_BZIP2) for n, c in e], "unusual way"),
    ],
)
def test_an_unsafe_archive_is_refused_before_torch_opens_it(change, says, upload):
    with pytest.raises(UnsupportedModel, match=says):
        load_model(upload(_rewritten(change)))


def test_a_local_header_that_disagrees_with_the_directory_is_refused(upload):
    content = bytearray(_rewritten(_stored))
    at = content.index(b"data.pkl")
    content[at : at + 8] = b"data.pkx"  # the first time is in the entry's own header
    with pytest.raises(UnsupportedModel, match="disagree"):
        load_model(upload(bytes(content)))


@pytest.mark.parametrize("flag", [0x1, 0x10, 0x20, 0x40, 0x80, 0x2000, 0x4000, 0x8000])
@pytest.mark.parametrize("where", ["PK\x01\x02", "PK\x03\x04"], ids=["directory", "entry"])
def test_flags_that_change_what_an_archive_holds_are_refused(where, flag, tmp_path):
    path = tmp_path / "archive"
    path.write_bytes(_flagged(zipped({"a": b"content"}), where, flag))
    with pytest.raises(BadArchive, match=r"encrypted|unusual way"):
        zip_directory(path, max_unpacked=1 << 20)


def test_a_program_whose_entries_are_marked_as_patched_data_is_refused_with_a_reason(upload):
    content = zoo.exported(nn.Linear(2, 2), torch.ones(2, 2))
    with pytest.raises(UnsupportedModel, match="unusual way"):
        load_model(upload(_flagged(content, "PK\x01\x02", 0x20), name="m.pt2"))


def _flagged(content: bytes, where: str, flag: int) -> bytes:
    """The archive with a flag set in every header of a kind."""
    changed, at = bytearray(content), 0
    while (at := changed.find(where.encode("latin1"), at)) >= 0:
        at += 8 if where == "PK\x01\x02" else 6
        changed[at : at + 2] = (int.from_bytes(changed[at : at + 2], "little") | flag).to_bytes(2, "little")
    return bytes(changed)


def test_something_after_the_zip_directory_is_refused(upload):
    with pytest.raises(UnsupportedModel, match="something follows"):
        load_model(upload(scripted() + b"tail"))


def _safetensors(header, data=b"", length=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_safetensors({}, length=1 << 33), "header claims"),
        (_safetensors(b"{" * 100), "not JSON"),
        (_safetensors(b'{"a":' * 50), "is not JSON"),
        (_safetensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, bytes(8)), "another size"),
        (
            _safetensors({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
            "offsets of 'w' are malformed",
        ),
        (_safetensors({"w": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}, bytes(4)), "malformed"),
        (_safetensors({"w": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "don't know"),
        (_safetensors({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}), "cut off"),
        (_safetensors({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)), "overlap"),
        (_safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)), "gaps"),
    ],
)
def test_a_dishonest_safetensors_header_is_refused(content, says, upload):
    with pytest.raises(UnsupportedModel, match=says):
        load_model(upload(content, LINEAR))


def test_a_legacy_file_that_claims_more_than_its_size_is_refused(upload):
    content = saved({"w": torch.ones(1 << 17)}, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedModel, match="larger than itself"):
        load_model(upload(content[:3000], LINEAR))


def test_four_hundred_damaged_files_each_load_or_are_refused_in_time(upload):
    state = {"fc.weight": torch.randn(64, 64), "fc.bias": torch.randn(64)}
    architecture = {"layers": [["Linear", {"in_features": 64, "out_features": 64}, "fc"]]}
    originals = [
        traced(nn.Linear(3, 2), torch.randn(1, 3)),
        saved(state),
        saved(state, _use_new_zipfile_serialization=False),
        safetensors_bytes(state),
    ]
    rng = random.Random(7)
    outcomes = {"loaded": 0, "refused": 0}
    for turn in range(400):
        content = bytearray(originals[turn % 4])
        match turn // 4 % 3:
            case 0:
                del content[rng.randrange(len(content)) :]
            case 1:
                for _ in range(rng.randint(1, 8)):
                    content[rng.randrange(len(content))] = rng.randrange(256)
            case _:
                start = rng.randrange(len(content))
                content[start : start + rng.randint(1, 64)] = rng.randbytes(rng.randint(0, 64))
        began = time.process_time()
        try:
            load_model(upload(bytes(content), architecture))
            outcomes["loaded"] += 1
        except ParedError as error:
            outcomes["refused"] += bool(error.detail)
        assert time.process_time() - began < 10  # of the processor, for other tests run beside this one
    print(outcomes)
    assert sum(outcomes.values()) == 400
    assert min(outcomes.values()) > 30
