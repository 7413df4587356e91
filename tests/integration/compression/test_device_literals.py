"""Models run where they are placed, whatever devices are written into them: on a card, else on the meta device."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pared.compression import distill, prune
from pared.compression.coupling import find_groups
from pared.compression.coupling.verify import flat_tensors
from pared.compression.devices.placement import _written, device_of, foreign_devices, place
from pared.compression.devices.script_code import COPIES, FACTORIES
from pared.compression.devices.values import CPU
from pared.compression.distillation.features import Probe
from pared.compression.loading import inspect_model, load_model
from pared.compression.measuring.running import unoptimized
from pared.compression.tasks.classification import Classification
from pared.compression.work import ModelFile
from pared.errors import UnsupportedModel
from pared.weights.packed import read
from pared.weights.unpack import unpack
from tests.support.models import zoo
from tests.support.models.gallery import GALLERY

ELSEWHERE = torch.device("cuda:0" if torch.cuda.is_available() else "meta")
TOKENS = torch.randint(0, 10, (4, 6), generator=torch.Generator().manual_seed(0))


def rewritten(file: bytes, change: Callable[[bytes], bytes], ending: str = ".py") -> bytes:
    """A zip archive whose entries of this ending are changed."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(written, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith(ending) else content)
    return written.getvalue()


def made_on(device: str, file: bytes) -> bytes:
    """A TorchScript file as it would be, had it been made on this device."""
    return rewritten(file, lambda code: code.replace(b'torch.device("cpu")', f'torch.device("{device}")'.encode()))


def code_of(file: bytes) -> str:
    """All code in a TorchScript file."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".py"))


def loaded(file: bytes) -> torch.jit.ScriptModule:
    return torch.jit.load(io.BytesIO(file), map_location="cpu")


def fill(module: torch.jit.ScriptModule, state: dict[str, Tensor]) -> None:
    """Give a module tensors on the CPU again, which no `.to` can do for those of the meta device."""
    owners = dict(module.named_modules(remove_duplicate=False))
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        setattr(owners[owner], leaf, tensor.clone())
    for layer in module.modules():
        if hasattr(layer, "_flat_weights"):
            layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@pytest.fixture
def opened(tmp_path):
    """Opens a file as an upload."""

    def load(file: bytes, name: str = "model.pt"):
        path = tmp_path / name
        path.write_bytes(file)
        return load_model(ModelFile(path, name, "0" * 64))

    return load


class Reader(nn.Module):
    """What tracing writes a device into: positions, and the first state of a recurrent layer."""

    def __init__(self, kind=nn.GRU):
        super().__init__()
        self.words, self.places = nn.Embedding(10, 8), nn.Embedding(20, 8)
        self.memory, self.out = kind(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, tokens):
        places = torch.arange(tokens.size(1), device=tokens.device)
        return self.out(self.memory(self.words(tokens) + self.places(places))[0][:, -1])


@torch.jit.script
class Box:
    def __init__(self, device: torch.device):
        self.device = device


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.device = nn.Linear(3, 3), torch.device("cuda:1")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.ones(3, device=self.device)

    @torch.jit.export
    def aside(self, x: Tensor) -> Tensor:
        return x.to("mps") + 1


def shifted(x: Tensor) -> Tensor:
    return x + torch.ones(3, device=torch.device("cuda:2"))


class Written(nn.Module):
    """Names devices in every way that TorchScript knows; to its linear layer's answer it adds 14."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.text = "cuda"
        self.several, self.named = [torch.device("cuda:0")], {"here": torch.device("xpu")}
        self.pair = torch.device("cuda"), 1
        self.maybe = torch.jit.Attribute(torch.device("cuda"), torch.device | None)
        self.box = Box(torch.device("cuda:0"))

    def forward(self, x: Tensor, where: torch.device = torch.device("cuda:3"), name: str = "cuda:4") -> Tensor:  # noqa: B008
        x = self.inner.aside(self.inner(x.to("cuda"))).cuda()
        for device in self.several:
            x = x + torch.ones(3, device=device)
        x = shifted(x) + torch.ones(3, device=self.text) + torch.ones(3, device=name)
        x = x + torch.ones(3, device=where) + torch.ones(3, device=self.named["here"])
        x = x + torch.ones(3, device=self.pair[0]) + torch.ones(3, device=self.maybe) + torch.ones(3).to(x)
        x = x + torch.ones(3, device=torch.device("cuda", 5)) + torch.ones(3, device=self.box.device)
        return x.to(torch.device("cuda:0")).pin_memory() + self.other(torch.zeros(3, device="cuda", pin_memory=True))

    @torch.jit.export
    def other(self, x: Tensor) -> Tensor:
        return x.to(device="cuda:0") + 1


X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def written() -> bytes:
    return zoo.saved(torch.jit.script(Written()).eval())


def traced(kind=nn.GRU) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    return torch.jit.trace(Reader(kind).eval(), TOKENS, check_trace=False)


# -- placing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimized", [True, False], ids=["optimized", "unoptimized"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_traced_recurrent_layer_follows_back_and_forth(kind, optimized):
    module = loaded(zoo.saved(traced(kind)))
    state = state_of(module)
    with torch.jit.optimized_execution(optimized):
        expected = [module(TOKENS) for _ in range(3)][-1]  # compiled by now
        for _ in range(2):
            place(module, ELSEWHERE)
            assert [module(TOKENS.to(ELSEWHERE)).device for _ in range(3)] == [ELSEWHERE] * 3
            fill(module, state)
            place(module, "cpu")
            for _ in range(3):
                torch.testing.assert_close(module(TOKENS), expected)


def test_a_scripted_recurrent_layer_keeps_its_own_list_of_weights():
    module = torch.jit.script(Reader().eval())
    place(module, ELSEWHERE)
    assert module(TOKENS.to(ELSEWHERE)).device == ELSEWHERE
    assert module.memory._flat_weights[0] is module.memory.weight_ih_l0


def test_every_way_of_naming_a_device_follows(written):
    module = loaded(written)
    assert foreign_devices(module) == [
        *("cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:3"),
        *("cuda:4", "cuda:5", "mps", "xpu"),
    ]
    place(module, "cpu")
    for _ in range(3):
        torch.testing.assert_close(module(X), module.inner.fc(X) + 14)
    again = loaded(zoo.saved(module))
    assert foreign_devices(again) == []
    torch.testing.assert_close(again(X), module(X))
    place(module, ELSEWHERE)
    with unoptimized():
        assert module(X.to(ELSEWHERE)).device == module.other(X.to(ELSEWHERE)).device == ELSEWHERE


def test_no_other_device_is_left_in_code_and_attributes(written):
    module = loaded(written)
    place(module, "cpu")
    file = zoo.saved(module)
    named = {
        line.strip() for line in code_of(file).splitlines() if any(kind in line for kind in ("cuda", "mps", "xpu"))
    }
    assert named == {'name: str="cuda:4") -> Tensor:'}  # text, which nothing makes a device of any more
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        assert b"xpu" not in archive.read("archive/data.pkl")


def test_placing_keeps_all_that_is_no_device(written):
    module = loaded(written)
    module.inner.fc.bias.requires_grad_(False)
    module.train()
    module.inner.eval()
    module.remark = "stays"
    parameters, children = dict(module.named_parameters()), list(module.modules())
    place(module, "cpu")
    assert all(tensor is parameters[name] for name, tensor in module.named_parameters())  # none had to move
    assert [id(child) for child in module.modules()] == [id(child) for child in children]
    assert [child.training for child in module.modules()] == [True, False, False]
    place(module, ELSEWHERE)
    assert {name: tensor.requires_grad for name, tensor in module.named_parameters()} == {
        "inner.fc.weight": True,
        "inner.fc.bias": False,
    }
    assert (module.remark, module.text, module.original_name) == ("stays", "cuda", "Written")


def test_a_module_that_was_just_traced_is_placed_as_its_file_is():
    module = traced()
    place(module, ELSEWHERE)
    assert module(TOKENS.to(ELSEWHERE)).device == ELSEWHERE


def test_looking_at_code_without_its_plans_leaves_calls_to_be_inlined():
    module = loaded(zoo.upload("plain_cnn", "scripted"))
    with unoptimized():
        place(module, "cpu")
    assert find_groups(module, (zoo.FAMILIES["plain_cnn"].inputs(2),)).groups


def test_placing_one_copy_leaves_the_other(written):
    module = loaded(zoo.saved(traced()))
    with torch.no_grad():
        other = module.__deepcopy__({})  # which shares the code
    expected = other(TOKENS)
    place(module, ELSEWHERE)
    torch.testing.assert_close(other(TOKENS), expected)


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_code_that_names_no_device_is_left_alone(form):
    module = loaded(zoo.upload("plain_cnn", form))
    before = zoo.saved(module)
    held = module._c
    for device in (CPU, ELSEWHERE, ELSEWHERE):
        place(module, device)
        assert module._c is held
    assert device_of(module) == ELSEWHERE
    fill(module, state_of(zoo.trained("plain_cnn")))
    assert code_of(zoo.saved(module)) == code_of(before)


@pytest.mark.parametrize("device", [CPU, ELSEWHERE], ids=str)
def test_placing_twice_does_nothing_more(written, device):
    for file in (written, zoo.saved(traced())):
        module = loaded(file)
        place(module, device)
        assert list(_written(module, device)) == []
        held = module._c
        place(module, device)
        assert module._c is held


class Shared(nn.Module):
    """One layer under two names, a tied weight, and tensors that are neither parameters nor buffers of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second, self.other.weight = self.first, self.first.weight
        self.register_buffer("offset", torch.arange(3.0))
        self.constants = [torch.ones(3), self.offset]
        self.maybe = torch.jit.Attribute(torch.ones(3), Tensor | None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(self.second(self.first(x))) + torch.ones(3, device="cuda")
        for constant in self.constants:
            x = x + constant
        maybe = self.maybe
        if maybe is not None:
            x = x + maybe
        return x


def test_ties_and_tensors_in_attributes_follow():
    module = loaded(zoo.saved(torch.jit.script(Shared())))
    place(module, "cpu")
    once = nn.functional.linear(X, module.first.weight, module.first.bias)
    twice = nn.functional.linear(once, module.first.weight, module.first.bias)
    expected = (
        nn.functional.linear(twice, module.first.weight, module.other.bias) + module.offset + 1 + module.offset + 2
    )
    torch.testing.assert_close(module(X), expected - module.offset)
    place(module, ELSEWHERE)
    assert module(X.to(ELSEWHERE)).device == ELSEWHERE
    assert module.first.weight is module.second.weight is module.other.weight
    assert module.constants[1] is module.offset


def one_more(self, given: tuple[Tensor], answer: Tensor) -> Tensor:
    return answer + torch.ones(3, device="cuda")


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1


def test_hooks_that_were_scripted_follow():
    module = nn.Sequential(Identity())
    for hooked in (module, module[0]):
        hooked.register_forward_hook(one_more)
    module = loaded(zoo.saved(torch.jit.script(module)))
    place(module, "cpu")
    torch.testing.assert_close(module(X), X + 2)
    place(module, ELSEWHERE)
    assert module(X.to(ELSEWHERE)).device == ELSEWHERE


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.ones(3, device=torch.device("cpu")) * torch.arange(3)


def test_the_constants_of_a_frozen_file_follow():
    module = torch.jit.freeze(torch.jit.script(Frozen().eval()))
    module = loaded(made_on("cuda:0", zoo.saved(module)))
    place(module, "cpu")
    assert device_of(module) == CPU
    assert module(X).shape == (2, 3)
    place(module, ELSEWHERE)
    assert device_of(module) == ELSEWHERE
    with unoptimized():
        assert module(X.to(ELSEWHERE)).device == ELSEWHERE


def counted(size: int, pinned: bool, device: torch.device | None = None) -> Tensor:
    return torch.arange(size, pin_memory=pinned, device=device)


class Nameless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        places = counted(x.size(1), True) + torch.zeros(1)
        rows = int(torch.tensor(x.size(0)) * torch.tensor(2))
        return (x + places + torch.full_like(x, 2.0)).repeat(rows, 1)


def test_what_names_no_device_is_made_where_the_model_runs():
    module = loaded(zoo.saved(torch.jit.script(Nameless())))
    place(module, "cpu")
    with unoptimized():  # what is on the meta device has no value to be read
        assert module(X).shape == (8, 3)
        place(module, ELSEWHERE)
        assert module(X.to(ELSEWHERE)).shape == (8, 3)
        assert list(_written(module, ELSEWHERE)) == []
        place(module, "cpu")
        assert module(X).shape == (8, 3)


class Halved(nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0] * 2, x.shape[1] // 2)


def test_numbers_that_tracing_computes_shapes_from_stay_where_they_are_read():
    x = torch.randn(2, 4)
    module = loaded(zoo.saved(torch.jit.trace(Halved(), x)))
    assert any(
        isinstance(node.output().type(), torch._C.TensorType) for node in module.graph.findAllNodes("prim::Constant")
    )
    place(module, ELSEWHERE)
    with unoptimized():
        assert module(x.to(ELSEWHERE)).shape == (4, 2)  # what is on the meta device has no value to be read


class Asking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.device == torch.device("cuda:0"):
            return x + 1
        if torch.device("cpu") != x.device:
            return x + 2
        return x + torch.zeros(3, device=torch.device("cuda:0"))


def test_who_asks_where_a_tensor_is_is_told_the_truth():
    module = loaded(zoo.saved(torch.jit.script(Asking())))
    place(module, "cpu")
    assert torch.equal(module(X), X)
    assert 'torch.device("cuda:0")' in module.code  # what is asked for
    place(module, ELSEWHERE)
    assert "x + 2" not in module.code
    assert 'torch.device("cpu")' in module.code


def test_modules_that_python_runs_are_placed_too():
    program = torch.export.export(Reader().eval(), (TOKENS,)).module()
    parent = nn.ModuleDict({"program": program, "script": loaded(made_on("cuda:0", zoo.saved(traced())))})
    parent.device, parent.kept = torch.device("cuda:0"), {"mask": torch.ones(3), "weight": program.out.weight}
    place(parent, "cpu")
    assert (parent.device, parent["script"](TOKENS).device) == (CPU, CPU)
    place(parent, ELSEWHERE)
    assert parent.device == parent.kept["mask"].device == ELSEWHERE
    assert parent.kept["weight"] is program.out.weight
    assert parent["script"](TOKENS.to(ELSEWHERE)).device == ELSEWHERE
    assert program(TOKENS.to(ELSEWHERE)).device == ELSEWHERE


def test_probes_run_where_the_model_does():
    module = loaded(zoo.saved(traced()))
    place(module, ELSEWHERE)
    with unoptimized():
        output, (features,) = Probe(module, ["memory"], "teacher")((TOKENS.to(ELSEWHERE),), Classification())
    assert (output.device, features.device, features.shape) == (ELSEWHERE, ELSEWHERE, (4, 6, 12))


def test_the_operators_that_make_tensors_are_those_of_torch():
    """All dense ones with a `device` in their schema: without tensors among the arguments, or with pinned memory."""
    unusual = ("sparse", "quantized", "nested", "out_variant")
    makes, copies = set(), set()
    for schema in torch._C._jit_get_all_schemas():
        arguments = {argument.name: str(argument.type) for argument in schema.arguments}
        if not schema.name.startswith("aten::") or any(word in schema.name for word in unusual):
            continue
        if "device" in arguments and not any("Tensor" in kind for kind in arguments.values()):
            makes.add(schema.name)
        elif "pin_memory" in arguments:
            copies.add(schema.name)
    internal = {
        f"aten::{name}" for name in ("Generator", "_cudnn_init_dropout_state", "_efficientzerotensor", "from_file")
    }
    internal |= {"aten::_make_dep_token", "aten::_empty_affine_quantized"}
    assert makes - internal <= set(FACTORIES)
    assert copies - set(FACTORIES) <= set(COPIES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.campaign)])
def test_architectures_of_all_kinds_run_where_they_are_placed(every):
    """Traced ones, in which most is written; torch refuses tensors of several devices, on the meta device too."""
    changed = []
    for name, family in list(GALLERY.items())[::every]:
        # On the meta device torch divides no number on the CPU, such as a size, by one there; CUDA's operators do.
        if not family.kind or name == "ScaleInForward":
            continue
        module, example = family.make(), family.example()
        module = loaded(zoo.saved(torch.jit.trace(module, example, check_trace=False)))
        held = module._c
        place(module, "cpu")
        assert module._c is held, f"{name} was changed though it is where it was made"
        place(module, ELSEWHERE)
        with torch.no_grad(), unoptimized():
            answers = flat_tensors(module(*(tensor.to(ELSEWHERE) for tensor in example)))
        assert {tensor.device for tensor in answers} == {ELSEWHERE}, name
        assert list(_written(module, ELSEWHERE)) == [], name
        changed += [name] if module._c is not held else []
    assert len(changed) > 10 / every


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1", "cuda", "mps", "xpu:0", "meta"])
def test_a_file_made_elsewhere_opens_on_the_cpu_and_says_so(opened, device):
    here = zoo.saved(traced())
    model = opened(made_on(device, here))
    assert model.flavour == "traced"
    (note,) = model.warnings
    assert note.startswith(f"The device that was written into this file ({device}) now follows where the model runs")
    assert inspect_model(model, (TOKENS,)).warnings[0] == note
    assert torch.equal(model.module(TOKENS), opened(here).module(TOKENS))
    assert code_of(zoo.saved(model.module)) == code_of(here)


def test_a_file_made_on_the_cpu_says_nothing(opened):
    assert opened(zoo.saved(traced())).warnings == []


def test_a_file_that_steers_cuda_is_refused_with_advice(opened):
    steering = rewritten(
        zoo.saved(torch.jit.script(Frozen())),
        lambda code: code.replace(b"fc = self.fc", b"fc = self.fc\n    ops.cuda.synchronize()"),
    )
    with pytest.raises(UnsupportedModel, match=r"uses cuda::synchronize.*GPU alone.*Leave streams"):
        opened(steering)


def test_a_program_made_elsewhere_opens_on_the_cpu_and_comes_out_for_it(opened, tmp_path):
    file = zoo.exported(Reader().eval(), TOKENS)

    def on_cuda(graph: bytes) -> bytes:
        changed = graph.replace(b'"type": "cpu", "index": null', b'"type": "cuda", "index": 0')
        assert changed != graph
        return changed.replace(
            b'"name": "pin_memory", "arg": {"as_bool": false}', b'"name": "pin_memory", "arg": {"as_bool": true}'
        )

    model = opened(rewritten(file, on_cuda, "model.json"), "model.pt2")
    assert model.warnings[0].startswith("The device that was written into this file (cuda:0)")
    torch.testing.assert_close(model.module(TOKENS), opened(file, "model.pt2").module(TOKENS))
    place(model.module, ELSEWHERE)
    assert model.module(TOKENS.to(ELSEWHERE)).device == ELSEWHERE


# -- methods ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "gru.pt"
    path.write_bytes(made_on("cuda:0", zoo.saved(traced())))
    return path


def samples(count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 10, (count, 6))
    return x, (x.sum(1) % 3).astype(np.int64)


def test_results_of_a_file_made_on_cuda_name_the_cpu(foreign, tmp_path):
    result = prune(
        foreign,
        samples(),
        directory=tmp_path,
        amount=0.3,
        retrain={"epochs": 1},
        outputs=["torchscript", "exported_program", "packed", "onnx"],
    )
    assert "(cuda:0)" in result.report.warnings[0]
    assert result.report.after.parameters < result.report.before.parameters
    script = (tmp_path / "model.pt").read_bytes()
    unpack(read(tmp_path / "model.packed"), tmp_path / "unpacked.pt")
    for file in (script, (tmp_path / "unpacked.pt").read_bytes()):
        assert "cuda" not in code_of(file)
        assert 'torch.device("cpu")' in code_of(file)
        torch.testing.assert_close(loaded(file)(TOKENS), result.model(TOKENS))
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        graph = next(archive.read(name) for name in archive.namelist() if name.endswith("model.json"))
    assert b"cuda" not in graph
    assert b'"cpu"' in graph
    assert json.loads(graph)


def test_a_student_made_on_cuda_learns_from_such_a_teacher(foreign, tmp_path):
    student = tmp_path / "student.pt"
    student.write_bytes(made_on("cuda:1", zoo.saved(traced(nn.LSTM))))
    loss = {"kind": "knowledge", "features": [["words", "words"]]}
    result = distill(foreign, student, samples(), loss=loss, train={"epochs": 1})
    assert {"(cuda:0)", "(cuda:1)"} <= set(" ".join(result.report.warnings).split())
    assert "cuda" not in code_of(zoo.saved(result.model))
