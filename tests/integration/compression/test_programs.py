"""torch.export programs (.pt2): opened as data, compressed like TorchScript, and written by torch.export again."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from pared.compression.export import programs as program_export
from pared.compression.export.writers import export
from pared.compression.loading import LoadedModel, guess_example_inputs, inspect_model, load_model
from pared.compression.pruning.channels import remove_channels
from pared.compression.work import DatasetFile, ModelFile, Work
from pared.errors import ExportFailed, UnsupportedModel
from pared.job_types import BY_SPEC, listed_spec
from pared.specs import PruneSpec
from tests.support.campaign import each_nth
from tests.support.models import zoo

MODEL = "mdl_" + "0" * 26
TRACED = ("resnet", "text_transformer", "signal_cnn")
"""Whose traces compute sizes."""


class Net(nn.Module):
    """Batch norm, dropout, tied weights, a frozen weight, a buffer that is not saved and a constant."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.a, self.b = nn.Linear(6 * 16, 8), nn.Linear(6 * 16, 8)
        self.b.weight = self.a.weight
        self.b.bias.requires_grad_(False)
        self.register_buffer("scale", torch.full((8,), 2.0), persistent=False)
        self.shift = torch.arange(8.0)

    def forward(self, x):
        x = self.drop(torch.relu(self.bn(self.conv(x))))
        x = x.view(x.size(0), -1)
        return self.a(x) * self.scale + self.b(x) + self.shift


EXAMPLE = torch.randn(3, 1, 4, 4)


class Answers(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x, mask=None, scale=2.0):
        with torch.no_grad():
            y = self.fc(x) * scale
        return {"y": y if mask is None else y * mask, "more": (y, x)}


class Branches(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


@torch.library.custom_op("shop::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


twice.register_fake(torch.empty_like)


class Foreign(nn.Module):
    def forward(self, x):
        return torch.ops.shop.twice(x)


@pytest.fixture
def opened(tmp_path):
    def load(content: bytes) -> LoadedModel:
        path = tmp_path / "upload.pt2"
        path.write_bytes(content)
        return load_model(ModelFile(path, path.name, "0" * 64))

    return load


def program(module, args, kwargs=None, **options) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, args, kwargs, **options), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, bytes]:
    torch.manual_seed(0)
    module = Net().eval()
    return module, zoo.exported(module, EXAMPLE)


# -- what opens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", each_nth(zoo.FAMILIES, 6))
def test_a_family_opens_answers_as_before_and_comes_out_smaller(family, opened, tmp_path):
    module, kind = zoo.trained(family), zoo.FAMILIES[family]
    content = zoo.upload(family, "program")
    loaded = opened(content)
    assert (loaded.format, loaded.flavour, loaded.warnings) == ("exported_program", "exported", [])
    assert not loaded.module.training
    for batch in (1, 7):
        torch.testing.assert_close(loaded.module(kind.inputs(batch)), module(kind.inputs(batch)))
    assert {n: p.shape for n, p in loaded.module.named_parameters()} == {
        n: p.shape for n, p in module.named_parameters()
    }
    layers = inspect_model(loaded, guess_example_inputs(loaded)).layers
    assert any(layer.prunable_channels for layer in layers)

    small = remove_channels(loaded, (kind.inputs(4),), amount=0.5).loaded
    (path,) = export(small, (kind.inputs(4),), ["exported_program"], tmp_path)
    result = torch.export.load(path)
    for batch in (1, 7):
        torch.testing.assert_close(result.module()(kind.inputs(batch)), small.module(kind.inputs(batch)))
    assert path.stat().st_size < len(content)
    assert result.state_dict.keys() == module.state_dict().keys()


def test_nothing_of_a_program_is_lost(net, opened, tmp_path):
    module, content = net
    loaded = opened(content)
    assert loaded.frozen_names == ["b.bias"]
    assert loaded.module.a.weight.data_ptr() == loaded.module.b.weight.data_ptr()
    (path,) = export(loaded, (EXAMPLE,), ["exported_program"], tmp_path)
    result = torch.export.load(path)
    assert result.state_dict.keys() == module.state_dict().keys()
    assert not result.state_dict["b.bias"].requires_grad
    assert result.state_dict["a.weight"].data_ptr() == result.state_dict["b.weight"].data_ptr()
    torch.testing.assert_close(result.module()(EXAMPLE), module(EXAMPLE))
    inspection = inspect_model(loaded, guess_example_inputs(loaded))
    assert {layer.name: layer.kind for layer in inspection.layers}["bn"] == "batch_norm"


def test_batch_norm_and_dropout_follow_the_mode_that_the_model_is_in(net, opened):
    loaded = opened(net[1])
    before = loaded.module.bn.running_mean.clone()
    loaded.module.train()
    assert not torch.equal(loaded.module(EXAMPLE), loaded.module(EXAMPLE))  # dropout
    assert not torch.equal(loaded.module.bn.running_mean, before)
    assert loaded.warnings == []


def test_a_program_of_training_mode_is_evaluated_all_the_same_and_that_is_said(opened):
    torch.manual_seed(0)
    module = Net().train()
    loaded = opened(zoo.exported(module, EXAMPLE))
    counted = int(loaded.module.bn.num_batches_tracked)
    torch.testing.assert_close(loaded.module(EXAMPLE), module.eval()(EXAMPLE))
    assert int(loaded.module.bn.num_batches_tracked) == counted
    assert "exported in training mode" in loaded.warnings[0]


def test_of_mixed_modes_each_stays(opened):
    module = Net().eval()
    module.drop.train()
    loaded = opened(zoo.exported(module, EXAMPLE))
    assert not torch.equal(loaded.module(EXAMPLE), loaded.module(EXAMPLE))
    assert "Call model.eval() before torch.export.export" in loaded.warnings[0]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_that_only_reshapes_name_is_freed(rows, net, opened):
    module, _ = net
    loaded = opened(zoo.exported(module, EXAMPLE[:rows], fixed=True))
    torch.testing.assert_close(loaded.module(EXAMPLE[:2]), module(EXAMPLE[:2]))
    assert f"exported for a batch of {rows} alone. Its own steps take any" in loaded.warnings[0]
    assert [len(x) for x in guess_example_inputs(loaded)] == [4]


def test_a_batch_that_stays_fixed_is_said_with_what_to_do(opened, tmp_path):
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) + torch.ones(x.size(0), 4).cumsum(0)

    module = Sums().eval()
    example = torch.randn(3, 4)
    loaded = opened(zoo.exported(module, example, fixed=True))
    assert "takes a batch of 3 alone" in loaded.warnings[0]
    assert "dynamic_shapes=" in loaded.warnings[0]
    (path,) = export(loaded, (example,), ["exported_program"], tmp_path)
    torch.testing.assert_close(torch.export.load(path).module()(example), module(example))


def test_every_size_that_is_free_stays_free(opened, tmp_path):
    encoder = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    module = nn.Sequential(nn.Embedding(20, 16), encoder, nn.Linear(16, 3)).eval()
    tokens = torch.randint(0, 20, (3, 7))
    loaded = opened(program(module, (tokens,), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},)))
    (path,) = export(loaded, (tokens,), ["exported_program"], tmp_path)
    longer = torch.randint(0, 20, (2, 11))
    torch.testing.assert_close(torch.export.load(path).module()(longer), module(longer))


def test_inputs_by_name_and_nested_answers_come_one_after_the_other(opened):
    module = Answers().eval()
    inputs = {"x": torch.randn(3, 4), "mask": torch.ones(3, 2)}
    loaded = opened(program(module, (), inputs, dynamic_shapes={name: {0: Dim.AUTO} for name in inputs}))
    answer = module(**inputs)
    torch.testing.assert_close(loaded.module(*inputs.values()), (answer["y"], *answer["more"]))
    assert "by name" in loaded.warnings[0]
    assert "inside of containers" in loaded.warnings[1]
    fixed = opened(program(module, (inputs["x"], None, 3.0), dynamic_shapes=({0: Dim.AUTO}, None, None)))
    torch.testing.assert_close(fixed.module(inputs["x"])[0], module(inputs["x"], scale=3.0)["y"])
    assert "The inputs mask, scale were fixed" in fixed.warnings[0]


def test_a_decomposed_program_can_lose_channels_too(opened):
    exported = torch.export.export(zoo.trained("resnet"), (zoo.FAMILIES["resnet"].inputs(3),), strict=False)
    buffer = io.BytesIO()
    torch.export.save(exported.run_decompositions(), buffer)
    layers = inspect_model(loaded := opened(buffer.getvalue()), guess_example_inputs(loaded)).layers
    assert sum(layer.prunable_channels for layer in layers) >= 5
    loaded.module.train()
    assert torch.isfinite(loaded.module(zoo.FAMILIES["resnet"].inputs(5))).all()


def test_half_precision_becomes_float32_and_is_said(opened):
    module = nn.Linear(4, 2).half().eval()
    loaded = opened(zoo.exported(module, torch.randn(3, 4).half()))
    assert loaded.module(torch.randn(2, 4)).dtype == torch.float32
    assert "float16 are computed with in float32" in loaded.warnings[0]
    assert loaded.forms["weight"].dtype == torch.float16
    assert loaded.example[0].dtype == torch.float32


# -- what is refused ----------------------------------------------------------------------------


def edited(content: bytes, *, drop: str = "", add: dict[str, bytes] | None = None, **changes: Callable[[Any], Any]):
    """The archive with changes: `graph` and `weights` are given what the JSON holds, and change it."""
    files = {"graph": "/models/model.json", "weights": "/data/weights/model_weights_config.json"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            record = old.read(name)
            for change, where in files.items():
                if change in changes and name.endswith(where):
                    document = json.loads(record)
                    record = json.dumps(changes[change](document) or document).encode()
            if not drop or not name.endswith(drop):
                new.writestr(name, record)
        root = old.namelist()[0].partition("/")[0]
        for name, record in (add or {}).items():
            new.writestr(f"{root}/{name}", record)
    return buffer.getvalue()


def nodes(document: Any) -> list[dict[str, Any]]:
    return document["graph_module"]["graph"]["nodes"]


def payload(document: Any) -> dict[str, Any]:
    return document["config"]["conv.weight"]


class Trap:
    """Its unpickling leaves a trace."""

    def __reduce__(self):
        return Path.touch, (Path("/tmp/pared-unpickled"),)


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda good: good[:-300], "damaged or unsafe archive"),
    "half": (lambda good: good[: len(good) // 2], "cut off"),
    "bit rot": (lambda good: good.replace(good[2000:2040], bytes(40)), r"damaged|not as"),
    "newer": (
        lambda good: edited(good, graph=lambda d: d["schema_version"].update(major=9)),
        r"version 9 of its format; pared reads version 8.*upload the model as TorchScript",
    ),
    "no json": (lambda good: edited(good, graph=lambda d: [1, 2]), r"model\.json, the whole"),
    "no graph": (lambda good: edited(good, drop="model.json"), "must hold one program.*holds none"),
    "two programs": (lambda good: edited(good, add={"models/other.json": b"{}"}), "other.json"),
    "no weight": (lambda good: edited(good, drop="weight_0"), "has no .*weight_0"),
    "no weights": (lambda good: edited(good, drop="weights_config.json"), "has no .*weights_config"),
    "claims": (
        lambda good: edited(good, weights=lambda d: payload(d)["tensor_meta"]["sizes"][0].update(as_int=1 << 40)),
        "do not hold",
    ),
    "expanded": (
        lambda good: edited(
            good, weights=lambda d: payload(d)["tensor_meta"].update(sizes=[{"as_int": 9**9}], strides=[{"as_int": 0}])
        ),
        "more than the file holds",
    ),
    "negative": (
        lambda good: edited(good, weights=lambda d: payload(d)["tensor_meta"]["sizes"][0].update(as_int=-1)),
        "do not hold",
    ),
    "a type": (
        lambda good: edited(good, weights=lambda d: payload(d)["tensor_meta"].update(dtype=29)),
        "number 29 of torch's schema",
    ),
    "a pickle": (
        lambda good: edited(
            good,
            weights=lambda d: payload(d).update(use_pickle=True, tensor_meta=None),
            add={"data/weights/trap": pickle.dumps(Trap())},
        ),
        "would run code of its own",
    ),
    "an unknown name": (
        lambda good: edited(good, graph=lambda d: nodes(d)[-1]["inputs"][0].update(arg={"as_tensor": {"name": "?"}})),
        "before it is made",
    ),
    "an unknown operator": (
        lambda good: edited(good, graph=lambda d: nodes(d)[-1].update(target="torch.ops.aten.nonsense.default")),
        "aten::nonsense",
    ),
    "Python": (lambda good: edited(good, graph=lambda d: nodes(d)[-1].update(target="os.system")), "uses os.system"),
    "an argument's name": (
        lambda good: edited(good, graph=lambda d: nodes(d)[-1]["inputs"][0].update(name="x)\n    q(y", kind=2)),
        "does not know",
    ),
    "an argument": (
        lambda good: edited(good, graph=lambda d: nodes(d)[-1]["inputs"][0].update(arg={"as_tensor": [1]})),
        "not as torch.export writes it",
    ),
    "an empty argument": (
        lambda good: edited(good, graph=lambda d: nodes(d)[-1]["inputs"][0].update(arg={})),
        r"model\.json",
    ),
    "an output": (
        lambda good: edited(
            good,
            graph=lambda d: d["graph_module"]["signature"]["output_specs"].append(
                {"user_input_mutation": {"arg": {"name": "x"}, "user_input_name": "x"}}
            ),
        ),
        "user_input_mutation among its results",
    ),
    "a keyword": (
        lambda good: edited(good, weights=lambda d: d["config"].update({"a.in": payload(d)})),
        "a word of Python's own",
    ),
    "a name": (
        lambda good: edited(good, weights=lambda d: d["config"].update({"conv.forward": payload(d)})),
        "cannot be the name of a tensor",
    ),
    "compiled": (lambda good: edited(good, add={"data/aotinductor/model/a.so": b"\x7fELF"}), "AOTInductor"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_program_is_refused_with_what_to_do(what, net, opened):
    make, says = BAD[what]
    with pytest.raises(UnsupportedModel, match=says):
        opened(make(net[1]))
    assert not Path("/tmp/pared-unpickled").exists()


@pytest.mark.parametrize(
    ("module", "says"), [(Branches, "torch.export's cond.*as TorchScript"), (Foreign, "shop::twice")]
)
def test_what_is_no_straight_line_of_plain_operators_is_refused(module, says, opened):
    with pytest.raises(UnsupportedModel, match=says):
        opened(zoo.exported(module(), torch.randn(3, 4)))


def test_programs_from_before_the_archive_are_told_apart(opened):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("version", "8.5")
    with pytest.raises(UnsupportedModel, match=r"PyTorch before 2\.8"):
        opened(buffer.getvalue())


# -- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "form"),
    each_nth([*((family, "scripted") for family in zoo.FAMILIES), *((family, "traced") for family in TRACED)], 6),
)
def test_torchscript_becomes_a_program_of_any_batch(family, form, opened, tmp_path):
    kind = zoo.FAMILIES[family]
    loaded = opened(zoo.upload(family, form))
    (path,) = export(loaded, (kind.inputs(4),), ["exported_program"], tmp_path)
    result = torch.export.load(path)
    assert result.state_dict.keys() == loaded.module.state_dict().keys()
    for batch in (1, 7):
        torch.testing.assert_close(result.module()(kind.inputs(batch)), zoo.trained(family)(kind.inputs(batch)))


class Attends(nn.Module):
    """Runs through both fused operators, and through a convolution as traces say it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        x = self.conv(x).transpose(1, 2)
        return self.layer(self.attention(x, x, x)[0])


@pytest.mark.parametrize("form", [torch.jit.script, lambda model: torch.jit.trace(model, torch.randn(2, 3, 5))])
def test_a_program_holds_only_operators_that_every_torch_from_2_10_exports(form, opened, tmp_path):
    model, x = Attends().eval(), torch.randn(4, 3, 5)
    with torch.no_grad():
        content = zoo.saved(form(model))
    (path,) = export(opened(content), (x,), ["exported_program"], tmp_path)
    result = torch.export.load(path)
    operators = {str(node.target) for node in result.graph.nodes if node.op == "call_function"}
    assert not operators & {
        "aten._convolution.default",
        "aten._native_multi_head_attention.default",
        "aten._transformer_encoder_layer_fwd.default",
    }
    torch.testing.assert_close(result.module()(x[:3]), model(x[:3]))


def test_a_file_says_nothing_of_the_machine_or_the_data(net, opened, tmp_path):
    secret = torch.full_like(EXAMPLE, 1234.5)
    (path,) = export(opened(net[1]), (secret,), ["exported_program"], tmp_path)
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content
    assert b"pared" not in content
    assert secret[0, 0, 0, 0].numpy().tobytes() * 4 not in content


@torch.jit.script
def whichever(x: torch.Tensor) -> torch.Tensor:
    if bool(x.sum() > 0):
        return x + 1
    return x - 1


class Chooses(nn.Module):
    def forward(self, x):
        return whichever(x)


def test_what_no_program_can_hold_is_told(opened, tmp_path):
    loaded = opened(zoo.saved(torch.jit.script(Chooses())))
    with pytest.raises(ExportFailed, match=r"torch\.export cannot hold"):
        export(loaded, (torch.randn(3, 4),), ["exported_program"], tmp_path)


def test_sizes_in_loops_arithmetic_and_types_travel(opened, tmp_path):
    class Sizes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            rows = x.size(0)
            halves = torch.zeros(rows * 2, 3, dtype=torch.float64, device=x.device)
            for i in range(2):
                x = torch.relu(self.fc(x)) + i
            y = x.reshape(rows * 2, x.numel() // (2 * len(x))).to(torch.float64) + halves
            return y.reshape(len(x), -1).to(x.dtype).contiguous(memory_format=torch.contiguous_format)

    module = Sizes().eval()
    loaded = opened(zoo.saved(torch.jit.script(module)))
    (path,) = export(loaded, (torch.randn(4, 6),), ["exported_program"], tmp_path)
    x = torch.randn(7, 6)
    torch.testing.assert_close(torch.export.load(path).module()(x), module(x))


def test_the_reader_of_results_is_quiet_and_reads_our_own(net, opened, tmp_path, capfd):
    (path,) = export(opened(net[1]), (EXAMPLE,), ["exported_program"], tmp_path)
    assert program_export.load_program(path)(EXAMPLE).shape == (3, 8)
    assert capfd.readouterr() == ("", "")


def test_a_programs_usual_result_is_a_program_compared_like_with_like(tmp_path):
    class Digits(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(64, 48), nn.Linear(48, 10)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x.flatten(1))))

    path = tmp_path / "digits.pt2"
    path.write_bytes(zoo.exported(Digits().eval(), torch.randn(2, 1, 8, 8), fixed=True))
    out = tmp_path / "out"
    out.mkdir()
    spec = listed_spec.validate_python(
        {"type": "prune", "model": MODEL, "dataset": "builtin:digits", "amount": 0.5, "retrain": {"epochs": 1}}
    )
    work = Work({"model": ModelFile(path, path.name, "")}, DatasetFile(None, "builtin:digits"), out)
    report = BY_SPEC[PruneSpec].load_method()(spec, work)
    assert {file.name for file in out.iterdir()} == {"model.pt2", "report.json"}
    assert report.before.file_bytes == path.stat().st_size
    assert report.after.file_bytes == (out / "model.pt2").stat().st_size < report.before.file_bytes
    assert report.after.parameters < report.before.parameters
    assert any("batch of 2 alone" in note for note in report.warnings)


def test_a_view_that_an_export_left_of_a_copy_copies_where_it_must(tmp_path):
    """Attention lays its result out otherwise on other devices: a view of it, which fits here, does not fit there."""
    path = tmp_path / "net.pt2"
    path.write_bytes(zoo.upload("text_transformer", "program"))
    code = load_model(ModelFile(path, "net.pt2", "0" * 64)).module.code
    assert "torch.reshape(" in code
    assert "torch.view(" not in code
