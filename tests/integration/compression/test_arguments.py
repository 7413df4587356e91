"""TorchScript beyond forward(x): values, lists, states, other methods, files beside the model, unknown inputs."""

from __future__ import annotations

import numpy as np
import pydantic
import pytest
import torch

from pared.compression import distill, prune
from pared.compression.loading import inspect_model, load_model, on_tensors
from pared.compression.work import ModelFile
from pared.errors import ShapeMismatch, ValidationError
from pared.specs import PruneSpec, TensorSpec
from tests.support.files import arguments as files
from tests.support.files.base import HeldFile
from tests.support.models import arguments as models

RATED = files.RATED
GOOD = [row for row in files.ROWS if row.refused is None]
REFUSED = [row for row in files.ROWS if row.refused is not None]


def saved(module, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "upload.pt"
    torch.jit.save(torch.jit.script(module.eval()), path)
    return path


def arguments_of(path):
    schema = torch.jit.load(path)._c._get_method("forward").schema
    return [(one.name, str(one.type), one.default_value) for one in schema.arguments[1:]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No time for latency."""
    monkeypatch.setattr("pared.compression.report.parts.measure_latency", lambda *_, **__: ([], [], []))


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.name)
def test_held_file_is_pruned_and_its_result_takes_what_the_file_took(row: HeldFile, tmp_path):
    path = row.write(tmp_path)
    report = prune(path, None, directory=tmp_path / "out", **row.spec).report
    assert report.after.nonzero_parameters < report.before.nonzero_parameters
    assert not report.failed_outputs
    row.check({each.name: each for each in (tmp_path / "out").iterdir()})
    before, after = (
        torch.jit.load(each)._c._get_method("forward").schema for each in (path, tmp_path / "out" / "model.pt")
    )
    assert [(one.name, str(one.type)) for one in before.arguments[1:]] == [
        (one.name, str(one.type)) for one in after.arguments[1:]
    ]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_held_file_is_refused_with_what_to_write(row: HeldFile, tmp_path):
    with pytest.raises(ValidationError, match=None) as caught:
        prune(row.write(tmp_path), None, **row.spec)
    assert row.refused in caught.value.detail
    assert caught.value.errors[0]["pointer"].startswith("/example_inputs")


def test_result_answers_other_values_as_the_upload_where_nothing_removed_is_read(tmp_path):
    path = saved(models.Rated(), tmp_path)
    result = prune(path, None, amount=0.5, example_inputs=RATED)
    upload, x = torch.jit.load(path), torch.randn(4, 6)
    assert torch.equal(upload(x, 8000), result.model(x, 8000))
    assert not any("sr" in warning for warning in result.report.warnings)
    reasons = {layer.name: layer.reason for layer in result.report.layers}
    assert reasons["coarse"] == "not reached by the given inputs"
    assert reasons["fine"] is None


def test_values_for_which_the_result_is_wrong_are_told(tmp_path):
    warnings = prune(saved(models.Switched(), tmp_path), None, amount=0.5).report.warnings
    assert any(w.startswith("With features=True the result does not answer as the upload does") for w in warnings)
    assert any(w.startswith("With mode='another'") for w in warnings)
    assert any("other values of the arguments" in w and "could not be tried out" in w for w in warnings)


def test_values_for_which_the_result_is_right_are_not_warned_of(tmp_path):
    warnings = prune(saved(models.Switched(), tmp_path), None, amount=0.5, include=["a"]).report.warnings
    assert not any(warning.startswith("With ") for warning in warnings)


def test_data_beside_values_train_and_score_the_model(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 12)).astype("float32")
    result = prune(
        saved(models.Rated(), tmp_path),
        (x, None),
        task="match",
        amount=0.3,
        example_inputs=RATED,
        retrain={"epochs": 1},
    )
    assert 0 < result.report.after.quality.test.value < 1
    assert result.model(torch.randn(1, 12), 16000).shape == (1, 3)


class _Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(12, 3)

    def forward(self, x):
        return self.out(x)


@pytest.mark.parametrize("student", [{"from_teacher": {"width": 0.5}}, models.Rated, _Plain])
def test_a_teacher_of_values_teaches_and_students_take_what_their_files_took(student, tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 12)).astype("float32")
    given, taught = student, student is not _Plain
    if not isinstance(student, dict):
        given = saved(student(), tmp_path).rename(tmp_path / "student.pt")
    fields = {"task": "match", "loss": {"kind": "output_mse"}, "train": {"epochs": 1}, "example_inputs": RATED}
    result = distill(saved(models.Rated(), tmp_path), given, (x, None), directory=tmp_path / "out", **fields)
    arguments = [torch.randn(2, 12), 16000][: 1 + taught]
    assert torch.equal(result.model(*arguments), torch.jit.load(tmp_path / "out" / "model.pt")(*arguments))


def test_values_that_distillation_lacks_or_cannot_use_are_told(tmp_path):
    x = np.zeros((40, 12), dtype="float32")
    fields = {"task": "match", "loss": {"kind": "output_mse"}, "train": {"epochs": 1}}
    plain = saved(_Plain(), tmp_path).rename(tmp_path / "plain.pt")
    rated = saved(models.Rated(), tmp_path)
    for teacher, more, says in (
        (rated, {}, "beside a data set too"),
        (plain, {"example_inputs": RATED}, "both take tensors alone"),
        (rated, {"example_inputs": [{"shape": [2, 12]}]}, "which the data set shows"),
    ):
        with pytest.raises(ValidationError, match=says) as caught:
            distill(teacher, plain, (x, None), **fields, **more)
        assert caught.value.errors[0]["pointer"] == "/example_inputs"


def test_data_with_states_are_sample_by_sample(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"x0": (40, 4, 6), "x1": (40, 2, 5), "x2": (40, 2, 5)}
    arrays = [rng.standard_normal(shape).astype("float32") for shape in shapes.values()]
    given = [{"shape": [1, 4, 6]}, {"items": [{"shape": [2, 1, 5]}, {"shape": [2, 1, 5]}]}]
    result = prune(saved(models.Remembering(), tmp_path), (arrays, None), amount=0.3, example_inputs=given)
    outputs = [each["output"] for each in result.report.comparison.outputs]
    assert outputs == ["0", "1.0", "1.1"]


def test_data_without_values_are_refused_with_what_to_write(tmp_path):
    x = np.zeros((40, 12), dtype="float32")
    with pytest.raises(ValidationError, match="beside a data set too") as caught:
        prune(saved(models.Rated(), tmp_path), (x, None), task="match", amount=0.3)
    assert caught.value.errors[0]["pointer"] == "/example_inputs"


def test_inspection_says_which_values_a_job_must_give(tmp_path):
    path = saved(models.Rated(), tmp_path)
    warnings = inspect_model(load_model(ModelFile(path, path.name, "")), None).warnings
    assert any('such as [{"shape": [1, 512]}, {"value": 16000}]' in warning for warning in warnings)


def test_data_with_fewer_inputs_than_tensors_are_refused(tmp_path):
    x = np.zeros((40, 4, 6), dtype="float32")
    given = [{"shape": [1, 4, 6]}, {"items": [{"shape": [2, 1, 5]}, {"shape": [2, 1, 5]}]}]
    with pytest.raises(ShapeMismatch, match="The model takes x, state_0, state_1"):
        prune(saved(models.Remembering(), tmp_path), (x, None), task="match", amount=0.3, example_inputs=given)


@pytest.mark.parametrize("module", [models.Streaming, models.StreamingMean])
def test_a_model_with_a_state_answers_each_batch_as_its_file_does_first(module, tmp_path):
    path = saved(module(), tmp_path)
    loaded = on_tensors(load_model(ModelFile(path, path.name, "")), [TensorSpec(shape=[2, 6]), TensorSpec(value=16000)])
    x = torch.randn(3, 6)
    first = torch.jit.load(path)(x, 16000)
    assert all(torch.equal(loaded.module(x), first) for _ in range(2))
    result = prune(path, None, amount=0.5, example_inputs=[{"shape": [2, 6]}, {"value": 16000}])
    assert any("keeps last, calls from one call to the next" in warning for warning in result.report.warnings)
    assert not torch.equal(result.model(x, 16000), result.model(x, 16000))  # it remembers, as the upload does
    assert result.model.last.shape == (3, 6)


def test_methods_hold_or_are_gone_and_told(tmp_path):
    path = saved(models.Exporting(), tmp_path)
    result = prune(path, None, amount=0.5)
    gone = [w for w in result.report.warnings if w.startswith("The method ")]
    assert [w.split()[2] for w in gone] == ["embed", "tokens"]
    assert all("exclude" in w for w in gone)
    small, x, y = result.model, torch.randn(3, 6), torch.randn(3, 4)
    assert torch.allclose(small.twice(x), small(x) * 2)
    assert torch.equal(small.beside(y), torch.jit.load(path).beside(y))


def test_methods_stay_where_their_layers_are_kept(tmp_path):
    result = prune(saved(models.Exporting(), tmp_path), None, granularity="weight", amount=0.5)
    assert result.model.tokens(torch.randn(2, 6)).shape == (2, 2, 8)
    assert not any("The method" in warning for warning in result.report.warnings)


def test_methods_that_are_gone_stay_gone_step_by_step(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 6)).astype("float32")
    result = prune(
        saved(models.Exporting(), tmp_path),
        (x, None),
        task="match",
        amount=0.5,
        schedule="iterative",
        steps=2,
        retrain={"epochs": 1},
    )
    assert set(result.model._c._method_names()) == {"forward", "twice", "beside"}
    assert sum(w.startswith("The method ") for w in result.report.warnings) == 2


def test_single_weights_of_unknown_inputs_are_zeroed_without_running_the_model(tmp_path):
    report = prune(saved(models.Rated(), tmp_path), None, granularity="weight", amount=0.5).report
    assert report.after.nonzero_parameters < 0.6 * report.before.nonzero_parameters
    assert report.after.macs is None
    assert not report.after.latency
    assert any("the shape of its inputs is not known" in warning for warning in report.warnings)


def test_formats_that_are_made_by_running_are_missing_where_inputs_are_unknown(tmp_path):
    fields = {"granularity": "weight", "amount": 0.5, "outputs": ["torchscript", "packed", "onnx"]}
    (failed,) = prune(saved(models.Rated(), tmp_path), None, **fields).report.failed_outputs
    assert failed.format == "onnx"
    assert "example_inputs" in failed.detail


@pytest.mark.parametrize(
    ("module", "given", "pointer", "words"),
    [
        (models.Rated, [{"value": 1}, {"value": 16000}], "/0/value", "for x the value 1 is given, where Tensor"),
        (models.Rated, [{"shape": [2, 12]}, {"value": 1.5}], "/1/value", "the value 1.5 is given, where int is wanted"),
        (models.Rated, [{"shape": [2, 12]}, {"value": True}], "/1/value", "the value True is given"),
        (models.Rated, [{"shape": [2, 12]}, {"value": None}], "/1/value", "no value is given, where int is wanted"),
        (models.Rated, [{"shape": [2, 12]}], "", "1 of these are described"),
        (models.Rated, [*RATED, {"value": 2}], "", "3 of these are described"),
        (models.Rated, [{"shape": [2, 12]}, {"items": [{"value": 1}]}], "/1/items", "items are given, where int"),
        (
            models.Remembering,
            [{"shape": [2, 4, 6]}, {"items": [{"shape": [2, 2, 5]}]}],
            "/1/items",
            "1 items are given, where Tuple[Tensor, Tensor] is wanted: give 2",
        ),
        (
            models.Remembering,
            [{"shape": [2, 4, 6]}, {"items": [{"shape": [2, 2, 7]}, {"shape": [2, 2, 7]}]}],
            "",
            "does not run on inputs of the shape",
        ),
        (models.Exporting, [{"shape": [2, 6]}, {"value": 1}], "", "2 of these are described"),
    ],
)
def test_entries_that_do_not_fit_are_refused(module, given, pointer, words, tmp_path):
    with pytest.raises(ValidationError) as caught:
        prune(saved(module(), tmp_path), None, amount=0.5, example_inputs=given)
    assert words in caught.value.detail
    assert caught.value.errors[0]["pointer"] == f"/example_inputs{pointer}"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "must have one of `shape`, `value` and `items`"),
        ({"shape": [2], "value": 3}, "must have one of"),
        ({"value": 3, "dtype": "int64"}, "is of tensors"),
        ({"value": "x" * 1001}, "at most 1000 characters"),
        ({"value": 1 << 63}, "at most 64 bits"),
        ({"value": float("inf")}, "finite"),
        ({"items": {"a": {"items": [{"items": [{"value": 1}]}]}}}, "levels of `items`"),
    ],
)
def test_entries_that_say_nothing_clear_are_refused(entry, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        TensorSpec.model_validate(entry)


def test_entries_read_as_they_were_written():
    entries = [*RATED, {"value": None}, {"items": {"a": {"shape": [2, 1, 3], "dtype": "float32", "batch_dim": 1}}}]
    document = {"type": "prune", "model": "mdl_" + "0" * 26, "amount": 0.5, "example_inputs": entries}
    spec = PruneSpec.model_validate(document)
    again = PruneSpec.model_validate(spec.model_dump())
    assert again == spec
    assert PruneSpec.model_validate_json(spec.model_dump_json(exclude_unset=True)) == spec
    assert spec.model_dump()["example_inputs"] == [{"shape": [2, 12], "dtype": "float32"}, *entries[1:]]


def test_residual_blocks_go_of_a_model_with_values(tmp_path):
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.b(torch.relu(self.a(x)))

    class Deep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.out = torch.nn.ModuleList(Block() for _ in range(3)), torch.nn.Linear(6, 2)

        def forward(self, x: torch.Tensor, gain: float) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return self.out(x) * gain

    given = [{"shape": [2, 6]}, {"value": 2.0}]
    small = prune(saved(Deep(), tmp_path), None, granularity="residual_block", amount=0.4, example_inputs=given).model
    x = torch.randn(2, 6)
    assert torch.allclose(small(x, 1.0) * 3, small(x, 3.0))


class _GivenStates(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.lstm = torch.nn.Linear(6, 8), torch.nn.LSTM(8, 5, batch_first=True)
        self.register_buffer("start", torch.zeros(1, 2, 5))

    def forward(self, x, h, c):
        return self.lstm(self.before(x).relu(), (h, c))[0]


class _KeptState(_GivenStates):
    def forward(self, x):
        return super().forward(x, self.start, self.start)


@pytest.mark.parametrize("form", ["traced", "exported"])
def test_a_recurrent_state_of_another_batch_is_an_error_and_no_crash(form, tmp_path):
    module, x = _KeptState().eval(), torch.randn(2, 7, 6)
    path = tmp_path / ("upload.pt" if form == "traced" else "upload.pt2")
    if form == "traced":
        torch.jit.trace(module, x).save(path)
    else:
        torch.export.save(torch.export.export(module, (x,)), path)
    with pytest.raises(ValidationError, match="The first state of an LSTM has other sizes"):
        prune(path, amount=0.5, example_inputs=[{"shape": [64, 7, 6]}])


def test_recurrent_states_may_be_inputs_of_traced_code(tmp_path):
    torch.manual_seed(0)
    module, state = _GivenStates().eval(), torch.randn(1, 2, 5)
    path = tmp_path / "upload.pt"
    torch.jit.trace(module, (torch.randn(2, 7, 6), state, state)).save(path)
    inputs = [{"shape": [2, 7, 6]}, {"shape": [1, 2, 5]}, {"shape": [1, 2, 5]}]
    outputs = ["torchscript", "onnx", "exported_program"]
    report = prune(path, amount=0.5, example_inputs=inputs, outputs=outputs, directory=tmp_path).report
    assert report.failed_outputs == []
    small = torch.jit.load(tmp_path / "model.pt")
    assert dict(small.named_parameters())["before.weight"].shape == (4, 6)
    states = torch.randn(1, 3, 5), torch.randn(1, 3, 5)
    x = torch.randn(3, 7, 6)
    program = torch.export.load(tmp_path / "model.pt2").module()  # which has the batch first everywhere
    torch.testing.assert_close(program(x, *(state.transpose(0, 1) for state in states)), small(x, *states))
    with pytest.raises(Exception, match="first state of an LSTM has other sizes"):
        small(torch.randn(4, 7, 6), *states)
