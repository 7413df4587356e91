"""ONNX files: opened as onnxruntime answers them, pruned, written as ONNX again; or refused with the true reason."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pared.compression import prune
from pared.compression.coupling.verify import flat_tensors
from pared.compression.export.onnx import operators_read_once
from pared.compression.loading import inspect_model, load_model
from pared.compression.loading.onnx.reading import read_onnx
from pared.compression.work import ModelFile
from pared.errors import UnsupportedModel
from tests.support.files import onnx as files


def opened(path):
    return load_model(ModelFile(path, path.name, "0" * 64))


def run(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {value.name: np.asarray(x) for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(each) for each in session.run(None, given)]


def assert_alike(loaded, path, *inputs):
    with torch.no_grad():
        got = flat_tensors(loaded.module(*(torch.as_tensor(x) for x in inputs)))
    for one, other in zip(got, run(path, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# -- what opens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("training_mode", [0, 1])
def test_a_batch_norm_that_says_whether_it_trains_opens_where_it_does_not(tmp_path, training_mode):
    of_norm = [
        helper.make_node("BatchNormalization", ["h", "w", "b", "mean", "var"], ["y"], training_mode=training_mode)
    ]
    nodes = [helper.make_node("Gemm", ["x", "fc"], ["h"]), *of_norm]
    arrays = {"fc": files.numbers(6, 4, seed=1), "w": files.numbers(4, seed=2), "b": files.numbers(4, seed=3)}
    arrays |= {"mean": files.numbers(4, seed=4), "var": np.square(files.numbers(4, seed=5)) + 1}
    tensors = [numpy_helper.from_array(np.asarray(each, np.float32), name) for name, each in arrays.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 6), ("y", 4))]
    graph = helper.make_graph(nodes, "norm", ends[:1], ends[1:], tensors)
    path = tmp_path / "norm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    if training_mode:
        with pytest.raises(UnsupportedModel):
            opened(path)
    else:
        assert_alike(opened(path), path, files.numbers(3, 6, seed=9))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (files.like_sklearn, (5, 12)),
        (files.like_tensorflow, (5, 16, 16, 3)),
        (files.like_paddle, (2, 3, 12, 20)),
    ],
)
def test_files_of_other_frameworks_answer_as_onnxruntime_does_on_sizes_of_their_own(tmp_path, model, shape):
    path = files.saved(model(), tmp_path / "model.onnx")
    loaded = opened(path)
    assert (loaded.format, loaded.flavour) == ("onnx", "onnx")
    assert_alike(loaded, path, files.numbers(*shape, seed=9))


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 20])
def test_files_of_every_version_answer_alike(tmp_path, opset):
    torch.manual_seed(0)
    path = files.traced(files.Blocks(), torch.randn(2, 3, 8, 8), tmp_path / "model.onnx", opset=opset)
    assert_alike(opened(path), path, torch.randn(3, 3, 8, 8))


def test_layers_have_the_files_names_and_are_known_by_kind(tmp_path):
    torch.manual_seed(0)
    path = files.traced(files.Blocks(), torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")
    loaded = opened(path)
    layers = {layer.name: layer for layer in inspect_model(loaded, loaded.example).layers}
    assert {"conv", "inner", "outer", "fc1", "fc2"} <= layers.keys()
    assert all(layers[name].prunable_channels for name in ("conv", "inner", "outer", "fc1"))
    assert layers["inner"].weights == {"inner.weight": [24, 16, 3, 3], "inner.bias": [24]}
    assert loaded.arguments == ("input",)


def test_a_written_out_layer_norm_is_one_layer(tmp_path):
    torch.manual_seed(0)
    path = files.traced(files.Encoder(), torch.randint(0, 40, (2, 9)), tmp_path / "model.onnx", opset=14)
    assert "LayerNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    loaded = opened(path)
    assert loaded.module.code.count("layer_norm") == 4
    assert_alike(loaded, path, torch.randint(0, 40, (3, 9)))


def test_torchs_current_exporter_and_free_lengths(tmp_path):
    torch.manual_seed(0)
    path = files.exported(files.Encoder(), torch.randint(0, 40, (2, 9)), tmp_path / "model.onnx")
    loaded = opened(path)
    assert loaded.free_dims == (frozenset({0, 1}),)
    assert_alike(loaded, path, torch.randint(0, 40, (3, 5)))


def test_torchs_current_exporter_reads_its_operators_once_and_no_export_changes_anothers():
    from torch.onnx._internal.exporter._registration import ONNXRegistry  # takes a second to import

    reading = vars(ONNXRegistry)["from_torchlib"]
    tables = []
    for _ in range(2):
        with operators_read_once():
            tables.append(ONNXRegistry().from_torchlib(opset_version=18))
    assert vars(ONNXRegistry)["from_torchlib"] is reading
    first, second = (table.functions for table in tables)
    assert first == second
    assert len(first) > 300
    operator = torch.ops.aten.relu.default
    assert first[operator.name()][0] is second[operator.name()][0], "made once"
    tables[0].register_op(operator, lambda x: x)
    assert len(first[operator.name()]) == len(second[operator.name()]) + 1


def test_a_branch_that_sizes_decide_is_taken_as_they_do(tmp_path):
    """As exporters write `squeeze` of a dimension whose size they do not know."""

    def branch(op, name, inputs):
        node = helper.make_node(op, inputs, [f"{name}_out"])
        info = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [info])

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1, end=2),
        helper.make_node("Equal", ["shape", "one"], ["single"]),
        helper.make_node(
            "If",
            ["single"],
            ["y"],
            then_branch=branch("Squeeze", "then", ["x", "one"]),
            else_branch=branch("Identity", "else", ["x"]),
        ),
    ]
    tensors = {"one": np.array([1], np.int64)}
    path = files.saved(files.made(nodes, {"x": ["batch", 1, 4]}, {"y": ["batch", 4]}, tensors), tmp_path / "m.onnx")
    assert_alike(opened(path), path, files.numbers(2, 1, 4))


def test_tied_weights_stay_tied(tmp_path):
    table = {"embed.weight": files.numbers(30, 8)}
    nodes = [
        helper.make_node("Gather", ["embed.weight", "ids"], ["rows"]),
        helper.make_node("Transpose", ["embed.weight"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "turned"], ["y"]),
    ]
    model = files.made(nodes, {"ids": ["batch", "length"]}, {"y": ["batch", "length", 30]}, table)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    path = files.saved(model, tmp_path / "model.onnx")
    loaded = opened(path)
    assert [name for name, _ in loaded.module.named_parameters()] == ["embed.weight"]
    assert_alike(loaded, path, np.array([[1, 29, 4]]))


def test_a_fixed_batch_is_freed_where_only_reshapes_name_it(tmp_path):
    torch.manual_seed(0)
    path = files.traced(files.Blocks(), torch.randn(1, 3, 8, 8), tmp_path / "model.onnx", free=False)
    loaded = opened(path)
    assert any("batch of 1 alone" in note for note in loaded.warnings)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        rows = torch.cat([run(path, x[i : i + 1])[0] for i in range(3)])
        torch.testing.assert_close(loaded.module(x), rows, rtol=1e-4, atol=1e-5)


def test_data_in_a_zip_beside_the_model_is_read(tmp_path):
    path = files.zipped(tmp_path)
    assert_alike(opened(path), tmp_path / "model.onnx", files.numbers(2, 16, 16, 3))


# -- results --------------------------------------------------------------------------------------


def test_a_pruned_result_is_onnx_and_right_against_zeroing(tmp_path):
    """Rows that are gone from the result are zeroed in the upload; both files answer alike in onnxruntime."""
    weights = {
        "a.weight": files.numbers(16, 3, 3, 3),
        "a.bias": files.numbers(16, seed=1),
        "b.weight": files.numbers(12, 16, 3, 3, seed=2),
        "b.bias": files.numbers(12, seed=3),
        "c.weight": files.numbers(5, 12, seed=4),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "a.weight", "a.bias"], ["1"], **pads),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b.weight", "b.bias"], ["3"], **pads),
        helper.make_node("Relu", ["3"], ["4"]),
        helper.make_node("GlobalAveragePool", ["4"], ["5"]),
        helper.make_node("Flatten", ["5"], ["6"]),
        helper.make_node("Gemm", ["6", "c.weight"], ["scores"], transB=1),
    ]
    model = files.made(nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 5]}, weights)
    helper.set_model_props(model, {"classes": "cat,dog"})
    path = files.saved(model, tmp_path / "model.onnx")
    out = tmp_path / "out"
    out.mkdir()
    result = prune(path, directory=out, granularity="channel", amount=0.5)
    assert {file.name for file in out.iterdir()} == {"model.onnx", "report.json"}
    assert result.report.after.file_bytes == (out / "model.onnx").stat().st_size < path.stat().st_size
    written = onnx.load(out / "model.onnx")
    assert {entry.key: entry.value for entry in written.metadata_props}["classes"] == "cat,dog"
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name in ("a.bias", "b.bias"):
            array = numpy_helper.to_array(tensor)
            gone = ~np.isin(array, kept[tensor.name])
            assert gone.any()
            layer = tensor.name[0]
            weight = weights[f"{layer}.weight"].copy()
            weight[gone] = 0
            tensor.CopyFrom(numpy_helper.from_array(np.where(gone, 0, array).astype(np.float32), tensor.name))
            next(t for t in model.graph.initializer if t.name == f"{layer}.weight").CopyFrom(
                numpy_helper.from_array(weight, f"{layer}.weight")
            )
    zeroed = files.saved(model, tmp_path / "zeroed.onnx")
    x = files.numbers(3, 3, 8, 8, seed=9)
    torch.testing.assert_close(run(out / "model.onnx", x)[0], run(zeroed, x)[0], rtol=1e-4, atol=1e-5)


def test_weights_and_ends_in_half_precision_stay_so(tmp_path):
    path = files.saved(files.like_sklearn(np.float16), tmp_path / "model.onnx")
    loaded = opened(path)
    assert {tensor.dtype for tensor in loaded.module.parameters()} == {torch.float32}
    out = tmp_path / "out"
    out.mkdir()
    result = prune(path, directory=out, granularity="channel", amount=0.5)
    written = onnx.load(out / "model.onnx")
    kinds = {tensor.data_type for tensor in written.graph.initializer if tensor.dims}
    assert kinds == {TensorProto.FLOAT16}
    ends = [*written.graph.input, *written.graph.output]
    assert [value.name for value in ends] == ["X", "probabilities"]
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT16}
    x = files.numbers(4, 12, dtype=np.float16)
    with torch.no_grad():
        expected = result.model(torch.from_numpy(x).float())
    torch.testing.assert_close(run(out / "model.onnx", x)[0].float(), expected, rtol=1e-2, atol=1e-2)


def test_bfloat16_weights_stay_so(tmp_path):
    model = files.like_sklearn()
    for tensor in model.graph.initializer:
        bits = torch.from_numpy(numpy_helper.to_array(tensor).copy()).bfloat16().view(torch.int16).numpy().tobytes()
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, tensor.dims, bits, raw=True))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    out = tmp_path / "out"
    out.mkdir()
    prune(files.saved(model, tmp_path / "model.onnx"), directory=out, granularity="channel", amount=0.5)
    written = onnx.load(out / "model.onnx")
    assert {t.data_type for t in written.graph.initializer if t.dims} == {TensorProto.BFLOAT16}


def test_recurrent_layers_shrink_and_stay_right(tmp_path):
    torch.manual_seed(0)
    path = files.traced(files.Recurrent(), torch.randn(2, 7, 6), tmp_path / "model.onnx")
    out = tmp_path / "out"
    out.mkdir()
    report = prune(path, directory=out, granularity="channel", amount=0.4, outputs=["torchscript", "onnx"]).report
    assert report.after.parameters < 0.8 * report.before.parameters
    assert not report.failed_outputs
    x = torch.randn(3, 7, 6)
    script = torch.jit.load(out / "model.pt")
    with torch.no_grad():
        torch.testing.assert_close(script(x), run(out / "model.onnx", x)[0], rtol=1e-4, atol=1e-5)


def test_a_state_of_another_batch_is_an_error_and_reads_no_foreign_memory(tmp_path):
    weights = {"W": files.numbers(1, 32, 5), "R": files.numbers(1, 32, 8, seed=1)}
    node = helper.make_node("LSTM", ["x", "W", "R", "", "", "h", "c"], ["", "y"], "lstm", hidden_size=8)
    states = {name: [1, "batch", 8] for name in ("h", "c")}
    model = files.made([node], {"x": [7, "batch", 5], **states}, {"y": [1, "batch", 8]}, weights)
    loaded = opened(files.saved(model, tmp_path / "model.onnx"))
    assert loaded.free_dims == (frozenset({1}),) * 3
    with pytest.raises(RuntimeError, match="invalid for input"):
        loaded.module(torch.ones(7, 32, 5), torch.ones(1, 4, 8), torch.ones(1, 4, 8))


# -- what is refused ------------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(UnsupportedModel) as caught:
        opened(path)
    return caught.value.detail


def claiming_more():
    model = files.like_sklearn()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 20, 1 << 20])
    return model


def in_a_circle():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return files.made(nodes, {"x": ["n", 4]}, {"b": ["n", 4]})


def filled(count):
    tensors = {"sizes": np.array([count, count], np.int64)}
    nodes = [
        helper.make_node("ConstantOfShape", ["sizes"], ["big"], "/fill"),
        helper.make_node("ReduceMax", ["big"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["y"]),
    ]
    return files.made(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, tensors)


def with_data_at(location, **entries):
    model = files.like_sklearn()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


def nested(depth):
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y0"])], "g", [], [_info("y0")])
    for level in range(1, depth):
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [_info(f"y{level}")])
    return graph


def _info(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])


def deciding_on_data():
    then, other = (
        helper.make_graph([helper.make_node(op, ["x"], [f"{op}_y"])], op, [], [_info(f"{op}_y")])
        for op in ("Relu", "Neg")
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], "/choice", then_branch=then, else_branch=other),
    ]
    return files.made(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, {"zero": np.float32(0)})


REFUSED = {
    "unknown operator": (lambda: files.with_one("NonMaxSuppression"), "The operator NonMaxSuppression (node /nonm"),
    "unknown domain": (lambda: files.with_one("Fast", domain="my.ops"), "my.ops::Fast"),
    "quantized": (files.quantized, "belongs to a quantized model"),
    "claims more than it holds": (claiming_more, "claims 1048576×1048576 elements, and the file holds"),
    "in a circle": (in_a_circle, "before it is made"),
    "a tensor of 2^60 elements": (lambda: filled(1 << 30), "onnxruntime"),
    "data outside of the folder": (lambda: with_data_at("../../etc/passwd"), "outside of the model's folder"),
    "data at an absolute path": (lambda: with_data_at("/etc/passwd"), "outside of the model's folder"),
    "data that is elsewhere": (lambda: with_data_at("weights.bin"), "zip model.zip model.onnx weights.bin"),
    "a branch that the data decides": (deciding_on_data, "(node /choice) takes one of two ways"),
    "an operator's newer attribute": (
        lambda: files.with_one("Attention", left_window_size=2),
        "has the attribute left_window_size",
    ),
    "an old version": (
        lambda: files.made([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}, opset=7),
        "version 7",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_opened_is_refused_with_the_true_reason(tmp_path, case):
    make, words = REFUSED[case]
    assert words in refusal(files.saved(make(), tmp_path / "model.onnx"))


def test_a_cut_file_is_refused(tmp_path):
    whole = files.like_tensorflow().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: len(whole) // 2])
    assert "It may be damaged or cut off" in refusal(path)


def test_graphs_within_graphs_without_end_are_refused(tmp_path):
    model = files.made([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]})
    model.graph.node.extend(nested(12).node)
    path = files.saved(model, tmp_path / "model.onnx")
    assert refusal(path)


def test_data_that_is_shorter_than_its_tensors_say_is_refused(tmp_path):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.onnx", with_data_at("weights.bin", offset=0, length=1152).SerializeToString())
        archive.writestr("weights.bin", b"\0" * 100)
    assert "lies at 0 to 1,152 of weights.bin, which has 100 bytes" in refusal(path)


def test_two_models_in_one_zip_are_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("a.onnx", "b.onnx"):
            archive.writestr(name, files.like_sklearn().SerializeToString())
    path = tmp_path / "model.zip"
    path.write_bytes(buffer.getvalue())
    assert "holds 2 ONNX models" in refusal(path)


def test_what_begins_as_a_zip_and_is_none_is_refused_by_who_reads_it(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"PK\x03\x04" + files.like_sklearn().SerializeToString())
    with pytest.raises(UnsupportedModel, match="This zip is damaged"):
        read_onnx(path)


def test_a_file_that_answers_otherwise_than_onnxruntime_is_refused(tmp_path, monkeypatch):
    """The comparison is what lets no wrong reading of an operator through."""
    from pared.compression.loading.onnx.operators import OPERATORS

    monkeypatch.setitem(OPERATORS, "Relu", OPERATORS["Sigmoid"])
    path = files.saved(files.with_one("Relu"), tmp_path / "model.onnx")
    monkeypatch.setitem(OPERATORS, "Relu", lambda step: step.code.call("neg", step.input()))
    assert "answers otherwise than onnxruntime does" in refusal(path)
