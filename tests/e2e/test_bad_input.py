"""Everything that a person or an attacker sends wrong: what the service answers, and that it goes on working.

Three tables: requests refused at once, uploads rejected by their inspection, and jobs that fail with a
reason. Each row names the status or code, and words of the advice that must be in the text.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.integration.compression.test_bad_tasks import JOBS
from tests.support.models import hostile, zoo
from tests.support.processes import Processes
from tests.support.stack import Stack, new_stack

ABSENT_MODEL = "mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"
ABSENT_DATASET = "dst_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"
ABSENT_JOB = "job_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"
MAX_UPLOAD = 8 << 20


@pytest.fixture(scope="module")
def wary(processes: Processes, scratch: Path) -> Iterator[Stack]:
    """A stack with tight limits, so that what never ends is ended soon."""
    limits = {
        "inspect_time_s": "30",
        "stall_s": "12",
        "memory_bytes": str(1 << 30),
        "max_attempts": "2",
        "max_upload_bytes": str(MAX_UPLOAD),
    }
    stack = new_stack(scratch / "wary", processes, workers=2, **limits)
    yield stack
    stack.stop()


@dataclass
class Good:
    """Uploads with nothing wrong, to be combined with what is."""

    model: str
    dataset: str
    state_dict: str

    def spec(self, **fields: Any) -> dict[str, Any]:
        """A sound job, changed in these fields; a field of `...` is left out."""
        spec = {"type": "prune", "model": self.model, "dataset": self.dataset, "amount": 0.5, "retrain": None, **fields}
        return {name: value for name, value in spec.items() if value is not ...}


@pytest.fixture(scope="module")
def good(wary: Stack) -> Good:
    return Good(
        model=wary.upload_model(zoo.upload("mlp", "scripted"), "good.pt"),
        dataset=wary.upload_dataset(zoo.dataset("mlp"), "good.npz"),
        state_dict=wary.upload_model(zoo.upload("mlp", "state_dict"), "weights.pt"),
    )


# -- requests that are refused at once ----------------------------------------------------------

Call = Callable[[Stack, Good], httpx.Response]


@dataclass
class Refused:
    name: str
    call: Call
    status: int
    problem: str
    says: str
    pointer: str | None = None


def post(**fields: Any) -> Call:
    return lambda stack, good: stack.http.post(
        "/v1/jobs", content=json.dumps(good.spec(**fields)), headers={"Content-Type": "application/json"}
    )


def raw(body: bytes, content_type: str = "application/json") -> Call:
    return lambda stack, _: stack.http.post("/v1/jobs", content=body, headers={"Content-Type": content_type})


def ask(method: str, path: str, **more: Any) -> Call:
    return lambda stack, _: stack.http.request(method, path, **more)


def other_body_under_one_key(stack: Stack, good: Good) -> httpx.Response:
    headers = {"Idempotency-Key": "bad-input"}
    stack.http.post("/v1/jobs", json=good.spec(), headers=headers)
    return stack.http.post("/v1/jobs", json=good.spec(amount=0.4), headers=headers)


def distill(**fields: Any) -> Call:
    def call(stack: Stack, good: Good) -> httpx.Response:
        spec = {"type": "distill", "teacher": good.model, "dataset": good.dataset, "student": good.model, **fields}
        return stack.http.post("/v1/jobs", json=spec)

    return call


V, N = "/problems/validation", "/problems/not-found"
REFUSED = [
    Refused("amount 0", post(amount=0), 422, V, "above 0 and below 1", "/amount"),
    Refused("amount 1", post(amount=1), 422, V, "above 0 and below 1", "/amount"),
    Refused("amount -1", post(amount=-1), 422, V, "above 0 and below 1", "/amount"),
    Refused("amount 1.5", post(amount=1.5), 422, V, "above 0 and below 1", "/amount"),
    Refused("amount NaN", post(amount=float("nan")), 422, V, "above 0 and below 1|finite", "/amount"),
    Refused("amount infinite", post(amount=float("inf")), 422, V, "above 0 and below 1|finite", "/amount"),
    Refused("amount in words", post(amount="half"), 422, V, "number", "/amount"),
    Refused("amount missing", post(amount=...), 422, V, "required", "/amount"),
    Refused("a target above 1", post(amount=..., target={"macs": 2}), 422, V, "above 0 and below 1", "/target/macs"),
    Refused("goals that contradict", post(target={"params": 0.5}), 422, V, "give one of the two", "/amount"),
    Refused("an unknown field", post(amuont=0.5), 422, V, "did you mean amount", "/amuont"),
    Refused("an unknown nested field", post(retrain={"epoch": 3}), 422, V, "did you mean epochs", "/retrain/epoch"),
    Refused("an unknown type", post(type="shrink"), 422, V, "prune.*distill", "/type"),
    Refused("no type", post(type=...), 422, V, "required", "/type"),
    Refused("a type pared makes itself", post(type="inspect"), 422, V, "prune.*distill", "/type"),
    Refused("an unknown granularity", post(granularity="atom"), 422, V, "weight.*channel", "/granularity"),
    Refused("negative epochs", post(retrain={"epochs": -1}), 422, V, "at least 0", "/retrain/epochs"),
    Refused("momentum 1", post(retrain={"momentum": 1}), 422, V, "below 1", "/retrain/momentum"),
    Refused("one step", post(schedule="iterative", steps=1), 422, V, "at least 2", "/steps"),
    Refused("steps at once", post(steps=3), 422, V, "one_shot", "/steps"),
    Refused("stages that fall", post(stages=[0.4, 0.2]), 422, V, "must rise", "/stages"),
    Refused("a stage beyond the amount", post(stages=[0.6]), 422, V, "end below `amount`", "/stages"),
    Refused("a ramp at once", post(granularity="weight", ramp=0.4), 422, V, "cubic", "/ramp"),
    Refused("regrowth of channels", post(schedule="cubic", regrow=0.1), 422, V, "while training runs", "/regrow"),
    Refused("a cubic ramp without training", post(granularity="weight", schedule="cubic"), 422, V, "ep", "/schedule"),
    Refused("amounts of all together", post(scope="global", amounts={"*": 0.2}), 422, V, "`scope` layer", "/amounts"),
    Refused("an amount of one layer above 1", post(amounts={"*": 1.2}), 422, V, "(below|less than) 1", "/amounts/*"),
    Refused("4 of 4", post(granularity="n:m", n_m=[4, 4], amount=...), 422, V, "removes nothing", "/n_m"),
    Refused("n of m and another amount", post(granularity="n:m", amount=0.6), 422, V, "leave it out", "/amount"),
    Refused("n of m for channels", post(n_m=[1, 4]), 422, V, "granularity n:m", "/n_m"),
    Refused(
        "a block of no rows", post(granularity="block", block=[0, 4]), 422, V, "(at least|or equal to) 1", "/block/0"
    ),
    Refused("blocks for channels", post(block=[2, 2]), 422, V, "granularity block", "/block"),
    Refused(
        "a score of channels for weights",
        post(granularity="weight", criterion="bn_scale"),
        422,
        V,
        "scores channels",
        "/criterion",
    ),
    Refused("a score that needs data", post(dataset=None, criterion="taylor"), 422, V, "dataset", "/criterion"),
    Refused("shared values for no packed file", post(quantize={"bits": 4}), 422, V, "add `packed`", "/quantize"),
    Refused("9 bits", post(quantize={"bits": 9}, outputs=["packed"]), 422, V, "at most 8", "/quantize/bits"),
    Refused(
        "Nesterov's momentum of Adam",
        post(retrain={"optimizer": "adam", "nesterov": True}),
        422,
        V,
        "momentum",
        "/retrain/nesterov",
    ),
    Refused("patience of 0", post(retrain={"patience": 0}), 422, V, "at least 1", "/retrain/patience"),
    Refused("retraining without data", post(dataset=None, retrain={"epochs": 1}), 422, V, "dataset", "/retrain"),
    Refused("preprocessing without data", post(dataset=None, preprocess={}), 422, V, "dataset", "/preprocess"),
    Refused("inputs beside data", post(example_inputs=[{"shape": [1, 16]}]), 422, V, "leave it out", "/example_inputs"),
    Refused(
        "an architecture for a student that has one",
        distill(student={"from_teacher": {"width": 0.5}}, student_architecture="mlp"),
        422,
        V,
        "leave it out",
        "/student_architecture",
    ),
    Refused("an output twice", post(outputs=["onnx", "onnx"]), 422, V, "twice", None),
    Refused("an unknown output", post(outputs=["tflite"]), 422, V, "torchscript", "/outputs/0"),
    Refused("a seed below zero", post(seed=-1), 422, V, "at least 0", "/seed"),
    Refused(
        "temperature 0", distill(loss={"kind": "knowledge", "temperature": 0}), 422, V, "(above|greater than) 0", None
    ),
    Refused(
        "alpha 2", distill(loss={"kind": "knowledge", "alpha": 2}), 422, V, "(at most|less than or equal to) 1", None
    ),
    Refused("an unknown loss", distill(loss={"kind": "magic"}), 422, V, "output_mse.*knowledge", "/loss/kind"),
    Refused("a student of width 2", distill(student={"from_teacher": {"width": 2}}), 422, V, "at most 1", None),
    Refused("a model that is absent", post(model=ABSENT_MODEL), 404, N, "upload it first", "/model"),
    Refused("a data set that is absent", post(dataset=ABSENT_DATASET), 404, N, "upload it first", "/dataset"),
    Refused("a data set for a model", post(model=ABSENT_DATASET), 422, V, "id of an uploaded model", "/model"),
    Refused("a model for a data set", post(dataset=ABSENT_MODEL), 422, V, "uploaded data set", "/dataset"),
    Refused("a data set of NULs", post(dataset="dst_" + "\0" * 26), 422, V, "uploaded data set", "/dataset"),
    Refused("an unknown built-in", post(dataset="builtin:imagenet"), 422, V, "builtin:digits", "/dataset"),
    Refused("a body that is no JSON", raw(b'{"type": "prune",'), 422, V, "not JSON.*line", ""),
    Refused("a body that is a list", raw(b"[1, 2]"), 422, V, "object", ""),
    Refused("an empty body", raw(b""), 422, V, "not JSON", ""),
    Refused("a form for a job", raw(b"type=prune", "application/x-www-form-urlencoded"), 422, V, "application/json"),
    Refused("a job of 2 MiB", raw(b'{"a": "' + b"x" * (2 << 20) + b'"}'), 413, "/problems/too-large", "at most"),
    Refused("an absent job", ask("GET", f"/v1/jobs/{ABSENT_JOB}"), 404, N, "no job"),
    Refused("a model's id for a job", ask("GET", f"/v1/jobs/{ABSENT_MODEL}"), 404, N, "look like job_"),
    Refused("a path for a job", ask("GET", "/v1/jobs/..%2f..%2fetc"), 404, "/problems/not-found", "."),
    Refused("an absent model", ask("DELETE", f"/v1/models/{ABSENT_MODEL}"), 404, N, "no model"),
    Refused("a route that is not there", ask("GET", "/v2/jobs"), 404, N, "/docs"),
    Refused("a method that is not there", ask("PUT", "/v1/jobs"), 405, "/problems/method-not-allowed", "/docs"),
    Refused("a limit of zero", ask("GET", "/v1/jobs?limit=0"), 422, V, "1", "/query/limit"),
    Refused("a cursor made up", ask("GET", "/v1/jobs?after=%00x"), 422, V, "next_cursor"),
    Refused("an unknown parameter", ask("GET", "/v1/jobs?state=failed"), 422, V, "status, type", "/query/state"),
    Refused("an unknown status", ask("GET", "/v1/jobs?status=lost"), 422, V, "queued", "/query/status"),
    Refused("an empty model", ask("POST", "/v1/models?filename=a.pt", content=b""), 422, V, "empty"),
    Refused("an empty data set", ask("POST", "/v1/datasets?filename=a.npz", content=b""), 422, V, "empty"),
    Refused("a form without a file", ask("POST", "/v1/models", files={"file": (None, "x")}), 422, V, "no file"),
    Refused(
        "more bytes than allowed",
        ask("POST", "/v1/models?filename=a.pt", content=bytes(MAX_UPLOAD + 1)),
        413,
        "/problems/too-large",
        "PARED_MAX_UPLOAD_BYTES",
    ),
    Refused(
        "more bytes than allowed, unannounced",
        ask("POST", "/v1/models?filename=a.pt", content=(bytes(1 << 20) for _ in range(9))),
        413,
        "/problems/too-large",
        "PARED_MAX_UPLOAD_BYTES",
    ),
    Refused(
        "one key for two bodies",
        other_body_under_one_key,
        422,
        "/problems/idempotency-mismatch",
        "new key for a new job",
    ),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_a_bad_request_is_refused_with_advice(row: Refused, wary: Stack, good: Good) -> None:
    answer = row.call(wary, good)
    assert answer.status_code == row.status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == row.problem
    assert problem["status"] == row.status
    assert problem["title"]
    assert problem["request_id"]
    told = problem["detail"] + "".join(error["detail"] for error in problem.get("errors", []))
    assert re.search(row.says, told), told
    if row.pointer is not None:
        assert row.pointer in {error["pointer"] for error in problem["errors"]}


# -- uploads that their inspection rejects ------------------------------------------------------


def torch_saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zipped(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Payload:
    """Would run a command on a naive server."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("__import__('os').system('touch /tmp/pared-was-here')",))


def arrays(**named: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **named)
    return buffer.getvalue()


@cache
def png(size: tuple[int, int], mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, "white").save(buffer, "PNG")
    return buffer.getvalue()


def gigapixels() -> bytes:
    """An image whose header alone says that it is huge."""
    header = struct.pack(">4sIIBBBBB", b"IHDR", 40_000, 25_000, 1, 0, 0, 0, 0)
    return png((8, 8))[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + png((8, 8))[33:]


def pictures(other: dict[str, bytes], *folders: str) -> bytes:
    """Twenty white images in each folder, but for these."""
    files = {f"{folder}/{i}.png": png((8, 8)) for folder in folders or (".",) for i in range(20)}
    return zipped(**{name.removeprefix("./"): content for name, content in (files | other).items()})


X, Y = zoo.tables(200, 3)


def changed(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


M, D, DATA = "unsupported-model", "unsupported-dataset", "invalid-data"


def good_model() -> bytes:
    return zoo.upload("mlp", "scripted")


# Contents are made when they are posted: every process of pytest reads these tables.
REJECTED_MODELS: list[tuple[str, Callable[[], bytes], str, str]] = [
    ("a pickled module", lambda: torch_saved(zoo.trained("mlp")), M, "pickled nn.Module.*torch.jit"),
    ("a pickle that runs a command", lambda: pickle.dumps(Payload()), M, "torch.jit|state_dict"),
    ("a torch file that runs a command", lambda: torch_saved({"a": Payload()}), M, "torch.jit|state_dict"),
    ("random bytes", lambda: np.random.default_rng(0).bytes(5000), M, "torch.jit|state_dict"),
    ("one byte", lambda: b"\x80", M, "torch.jit|state_dict"),
    ("a web page", lambda: b"<!DOCTYPE html><html>404</html>", M, "HTML|web page"),
    ("truncated TorchScript", lambda: good_model()[:-1000], M, "cut off"),
    ("TorchScript with a byte too many", lambda: good_model() + b"\x00", M, "Save and upload it again"),
    ("a truncated state dict", lambda: zoo.upload("mlp", "state_dict")[:-200], M, "cut off"),
    ("a safetensors header of exabytes", lambda: b"\xff" * 8 + b"{}", M, "Save and upload it again|torch.jit"),
    ("a zip of texts", lambda: zipped(readme=b"hello"), M, "torch.jit|state_dict"),
    ("a data set", lambda: zoo.dataset("mlp"), M, "data set"),
    ("a packed file", lambda: b"PARD" + bytes(200), M, "pared unpack"),
]
REJECTED_DATASETS: list[tuple[str, Callable[[], bytes], str, str]] = [
    ("random bytes", lambda: np.random.default_rng(0).bytes(5000), D, "npz"),
    ("a truncated npz", lambda: zoo.dataset("mlp")[:3000], D, "cut off|damaged"),
    ("a model", good_model, D, "model"),
    (
        "arrays of Python objects",
        lambda: arrays(x=np.array([{}, {}], dtype=object), y=np.arange(2)),
        DATA,
        "object|pickle",
    ),
    ("no x", lambda: arrays(y=Y), DATA, "name the arrays x"),
    ("labels of one split alone", lambda: arrays(x=X, x_test=X, y_test=Y), DATA, "targets where any split has them"),
    ("NaN inputs", lambda: arrays(x=changed(X, (7, 3), np.nan), y=Y), DATA, "NaN|not a number|not finite"),
    ("infinite inputs", lambda: arrays(x=changed(X, (7, 3), np.inf), y=Y), DATA, "inf|not finite"),
    ("x and y of other lengths", lambda: arrays(x=X, y=Y[:-1]), DATA, "200.*199|199.*200"),
    ("one sample", lambda: arrays(x=X[:1], y=Y[:1]), DATA, "sample"),
    ("no samples", lambda: arrays(x=X[:0], y=Y[:0]), DATA, "empty"),
    (
        "half an image",
        lambda: pictures({"7.png": png((8, 8))[:45]}),
        DATA,
        "7.png does not decode|7.png is not an image",
    ),
    ("images of two sizes", lambda: pictures({"7.png": png((8, 9))}), DATA, "differ in size"),
    ("an image of gigapixels", lambda: pictures({"0.png": gigapixels()}), DATA, "far more pixels"),
    ("masks of another size", lambda: pictures({"masks/7.png": png((9, 9))}, "images", "masks"), DATA, "one size"),
    (
        "masks of colours",
        lambda: pictures({"masks/7.png": png((8, 8), "RGB")}, "images", "masks"),
        DATA,
        "class numbers",
    ),
    ("images without masks", lambda: pictures({"masks/x.png": png((8, 8))}, "images"), DATA, "without a mask"),
    (
        "masks and other images",
        lambda: pictures({"other/x.png": png((8, 8))}, "images", "masks"),
        DATA,
        "neither in images",
    ),
]
REJECTED = [("models", *row) for row in REJECTED_MODELS] + [("datasets", *row) for row in REJECTED_DATASETS]


@pytest.fixture(scope="module")
def rejected(wary: Stack) -> dict[tuple[str, str], str]:
    """All bad uploads, posted up front."""
    posted = {}
    for kind, name, content, _, _ in REJECTED:
        response = wary.http.post(f"/v1/{kind}", params={"filename": f"{name}.bin"}, content=content())
        assert response.status_code == 201, response.text  # the API itself never opens what it is sent
        posted[kind, name] = response.json()["id"]
    return posted


@pytest.mark.parametrize("row", REJECTED, ids=lambda row: f"{row[0]}: {row[1]}")
def test_a_bad_upload_is_rejected_with_advice(
    row: tuple[str, str, Callable[[], bytes], str, str], wary: Stack, good: Good, rejected: dict[tuple[str, str], str]
) -> None:
    kind, name, _, code, says = row
    upload = wary.inspected(rejected[kind, name])
    assert upload["status"] == "rejected", upload
    assert upload["reason"]["code"] == code
    assert upload["reason"]["title"]
    assert re.search(says, upload["reason"]["detail"]), upload["reason"]["detail"]
    field = "model" if kind == "models" else "dataset"
    answer = wary.http.post("/v1/jobs", json=good.spec(**{field: upload["id"]}))
    assert answer.status_code == 409
    (error,) = answer.json()["errors"]
    assert error["pointer"] == f"/{field}"
    assert upload["reason"]["detail"] in error["detail"]


def test_nothing_in_an_upload_ran(rejected: dict[tuple[str, str], str]) -> None:
    assert not Path("/tmp/pared-was-here").exists()


# -- jobs that fail with a reason ---------------------------------------------------------------


@dataclass
class Failing:
    name: str
    spec: Callable[[Stack, Good], dict[str, Any]]
    code: str
    says: str


def with_model(
    content: Callable[[], bytes], *, no_data: bool = False, **fields: Any
) -> Callable[[Stack, Good], dict[str, Any]]:
    def spec(stack: Stack, good: Good) -> dict[str, Any]:
        data = {"dataset": None, "example_inputs": [{"shape": [2, 16]}]} if no_data else {}
        return good.spec(model=stack.upload_model(content(), "m.pt"), **data, **fields)

    return spec


def with_data(x: np.ndarray, y: np.ndarray, **fields: Any) -> Callable[[Stack, Good], dict[str, Any]]:
    return lambda stack, good: good.spec(dataset=stack.upload_dataset(zoo.npz(x, y), "d.npz"), **fields)


def state_dict(change: Callable[[dict[str, torch.Tensor]], None], **fields: Any) -> Callable[..., dict[str, Any]]:
    def changed_state() -> bytes:
        state = dict(zoo.trained("mlp").state_dict())
        change(state)
        return torch_saved(state)

    return with_model(changed_state, architecture=zoo.architecture("mlp"), **fields)


def weights_and(architecture: Any) -> Callable[[Stack, Good], dict[str, Any]]:
    return lambda stack, good: good.spec(model=good.state_dict, architecture=architecture)


def distilling(family: str = "mlp", **fields: Any) -> Callable[[Stack, Good], dict[str, Any]]:
    def spec(stack: Stack, good: Good) -> dict[str, Any]:
        return {
            "type": "distill",
            "teacher": stack.upload_model(zoo.upload(family, "scripted"), f"{family}.pt"),
            "student": good.model,
            "dataset": stack.upload_dataset(zoo.dataset(family), f"{family}.npz"),
            "train": {"epochs": 1},
            **fields,
        }

    return spec


def scripted(module: nn.Module) -> bytes:
    return zoo.saved(torch.jit.script(module.eval()))


def frozen() -> bytes:
    return zoo.saved(torch.jit.freeze(torch.jit.script(zoo.trained("mlp"))))


def poisoned() -> bytes:
    module = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    nn.init.constant_(module[0].weight, float("nan"))
    return scripted(module)


def tokens_out_of_range(stack: Stack, good: Good) -> dict[str, Any]:
    x, y = zoo.texts(200, 0)
    model = stack.upload_model(zoo.upload("text_pool", "scripted"), "t.pt")
    return good.spec(model=model, dataset=stack.upload_dataset(zoo.npz(x + 100, y), "t.npz"))


def not_together(name: str) -> Failing:
    """A row of the table of models, data and fields that do not go together."""
    model, data, fields, code, says = JOBS[name]

    def spec(stack: Stack, good: Good) -> dict[str, Any]:
        content = data if isinstance(data, bytes) else arrays(**dict(zip("xy", data, strict=True)))
        if not isinstance(data, bytes) and data[1] is None:
            content = arrays(x=data[0])
        return good.spec(
            model=stack.upload_model(scripted(model), "m.pt"), dataset=stack.upload_dataset(content, "d"), **fields
        )

    return Failing(name, spec, code, says)


def long_job(_: Stack, good: Good) -> dict[str, Any]:
    return good.spec(retrain={"epochs": 1000}, time_limit_s=1)


S, A = "shape-mismatch", "invalid-architecture"
WIDE = {"layers": [["Linear", {"in_features": 16, "out_features": 9}]]}
FAILING = [
    Failing("a state dict and no architecture", weights_and(None), A, "architecture"),
    Failing("an unknown architecture", weights_and("lenet99"), A, "Known names"),
    Failing("an unknown layer", weights_and({"layers": [["Linnear", {}]]}), A, "Linnear"),
    Failing("a layer with a bad argument", weights_and({"layers": [["Linear", {"size": 3}]]}), A, "in_features|size"),
    Failing("missing keys", state_dict(lambda s: s.__delitem__("net.4.weight")), S, r"Missing.*net\.4\.weight"),
    Failing("extra keys", state_dict(lambda s: s.update(extra=torch.ones(3))), S, "not in the architecture: extra"),
    Failing("wrong shapes", state_dict(lambda s: s.update({"net.6.bias": torch.ones(5)})), S, r"net\.6\.bias.*5.*4"),
    Failing("data of another shape", with_data(X[:, :9], Y), S, "holds.*9.*takes 16"),
    Failing("images for a table", with_data(*zoo.images(1, 8)(100, 0)), S, "holds"),
    Failing("labels out of range", with_data(X, Y + 3), DATA, "label"),
    Failing("negative labels", with_data(X, Y - 1), DATA, "label"),
    Failing("labels with fractions", with_data(X, Y + 0.5), DATA, "regression|whole|integer"),
    Failing("classes for a regression", with_data(X, Y, task="regression"), "shape-mismatch", "output|target"),
    Failing("token ids past the vocabulary", tokens_out_of_range, "*", "60|vocabulary"),
    Failing(
        "a mean for no channel", lambda _, good: good.spec(preprocess={"mean": [0.5, 0.5], "std": [1, 1]}), "*", "mean"
    ),
    Failing(
        "n of m that do not divide",
        lambda _, good: good.spec(granularity="n:m", n_m=[2, 5], amount=...),
        "nothing-to-prune",
        r"multiple of 5.*net\.0 \(16\).*Exclude",
    ),
    Failing("an amount for no layer", lambda _, good: good.spec(amounts={"conv*": 0.3}), "validation", "conv.*net.0"),
    Failing("an exception for no layer", lambda _, good: good.spec(exclude=["fc9"]), "validation", "fc9.*net.0"),
    Failing("no layer matches", lambda _, good: good.spec(include=["conv*"]), "validation", "net.0"),
    Failing("every layer excluded", lambda _, good: good.spec(exclude=["*"]), "nothing-to-prune", "exclude"),
    Failing("less than one channel", lambda _, good: good.spec(amount=1e-6), "nothing-to-prune", "larger amount"),
    Failing("a frozen file", with_model(frozen), "nothing-to-prune", "frozen|freeze"),
    Failing("weights that are NaN", with_model(poisoned, granularity="weight"), "*", "NaN|finite|not a number"),
    Failing(
        "a learning rate too high",
        lambda _, good: good.spec(retrain={"epochs": 3, "lr": 10, "momentum": 0.99}, task="classification", amount=0.1),
        "diverged",
        "lr|learning rate",
    ),
    Failing(
        "a result that is not finite",
        with_model(lambda: scripted(hostile.DividesByItsWeights()), granularity="weight", amount=0.95),
        "not-finite",
        "NaN is made by torch.div behind the layer fc.*exclude",
    ),
    Failing("a forward that raises", with_model(lambda: scripted(hostile.Raises())), "model-failed", "upside down"),
    Failing("a forward that never ends", with_model(lambda: scripted(hostile.LoopsForEver())), "stalled", "."),
    Failing(
        "a forward that kills",
        with_model(lambda: scripted(hostile.EndsItsProcess())),
        "model-crashes-worker",
        "SIGFPE|.",
    ),
    Failing(
        "a forward that hoards", with_model(lambda: scripted(hostile.AllocatesWithoutEnd())), "out-of-memory", "memory"
    ),
    Failing("a student of other outputs", distilling(student=WIDE), S, "9.*4|4.*9"),
    Failing(
        "features of an absent layer",
        distilling(loss={"kind": "knowledge", "features": [["net.99", "net.0"]]}),
        "*",
        "net.99",
    ),
    Failing(
        "knowledge on a regression",
        distilling("unet", task="regression", student=WIDE, loss={"kind": "knowledge"}),
        "*",
        "output_mse",
    ),
    Failing("a time limit of a second", long_job, "time-limit", "time_limit_s|longer"),
    *map(
        not_together,
        (
            "one logit, three classes",
            "masks of half the size",
            "a mask beyond the classes",
            "all of the held-out pixels ignored",
            "a name that a trace lost",
            "an output for a match",
            "texts of one token",
            "a next token outside",
            "a dropped token outside",
            "a tokenizer of more tokens",
        ),
    ),
]


@pytest.fixture(scope="module")
def failing(wary: Stack, good: Good) -> dict[str, str | httpx.Response]:
    """All bad jobs, posted up front: the id, or the refusal where the API could tell at once."""
    posted: dict[str, str | httpx.Response] = {}
    for row in FAILING:
        response = wary.http.post("/v1/jobs", json=row.spec(wary, good))
        posted[row.name] = response.json()["id"] if response.status_code == 202 else response
    return posted


@pytest.mark.parametrize("row", FAILING, ids=lambda row: row.name)
def test_a_bad_job_fails_with_advice(row: Failing, wary: Stack, failing: dict[str, str | httpx.Response]) -> None:
    posted = failing[row.name]
    if isinstance(posted, httpx.Response):
        assert posted.status_code == 422, posted.text
        error = posted.json()
        code = error["type"].removeprefix("/problems/")
    else:
        job = wary.ended(posted)
        assert job["status"] == "failed", job
        error = job["error"]
        code = error["code"]
        report = wary.http.get(f"/v1/jobs/{posted}/report")
        assert report.status_code == 409
        assert error["detail"] in report.json()["detail"]
        assert wary.artifacts(posted) == []
        uploads = [job["spec"][name] for name in ("model", "teacher", "dataset") if job["spec"].get(name)]
        assert [wary.inspected(upload)["id"] for upload in uploads] == uploads  # nothing is lost
    assert row.code in {"*", code}, error
    assert code != "internal", error
    assert error["title"]
    assert re.search(row.says, error["detail"]), error["detail"]


def test_a_model_that_prints_without_end_is_only_cut_short(wary: Stack, good: Good) -> None:
    model = wary.upload_model(scripted(hostile.FloodsItsOutput()), "flood.pt")
    job = wary.submit(good.spec(model=model, granularity="weight"))
    wary.succeeded(job)
    assert sum(event["event"] == "log" for event in wary.events(job)) < 2000


def test_the_traceback_of_a_rejected_upload_is_in_the_log_under_the_id_of_its_request(wary: Stack) -> None:
    headers = {"X-Request-Id": "no-model-at-all"}
    model = wary.http.post("/v1/models?filename=no.pt", content=b"no model at all", headers=headers).json()["id"]
    reason = wary.inspected(model)["reason"]
    [failed] = [
        r for worker in wary.workers for r in worker.records(event="method_failed", request_id="no-model-at-all")
    ]
    assert (failed["code"], failed["detail"]) == (reason["code"], reason["detail"])
    assert failed["output"].startswith("Traceback")
    assert f"UnsupportedModel: {reason['detail']}" in failed["output"]


def test_afterwards_the_service_is_ready_and_the_next_good_job_succeeds(wary: Stack, good: Good) -> None:
    assert wary.http.get("/readyz").status_code == 200
    assert all(worker.alive for worker in wary.workers)
    wary.succeeded(wary.submit(good.spec()))
    assert wary.http.get("/readyz").status_code == 200
