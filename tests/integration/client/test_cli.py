from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pared.compression.architectures import build
from pared.job_types import listed_spec
from pared.specs import Knowledge, TeachTrain, Train
from pared.state.session import make_engine, make_sessions, migrate
from pared.state.settings import Settings
from pared.state.tables import WorkerHeartbeat
from tests.support.forks import fork, run_pared
from tests.support.models import zoo
from tests.support.models.arguments import Rated
from tests.support.processes import environment, wait_for
from tests.support.scripted_server import Answer, Scripted
from tests.support.stack import Stack


class NoOnnx(nn.Module):
    """ONNX has no operator for what it computes first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(torch.lgamma(1 + x.abs()))))


DETACHED = "prune mlp.pt --data data.npz --channels 50% --epochs 1000 --batch-size 2"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    torch.jit.script(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))).save(str(folder / "mlp.pt"))
    torch.jit.script(NoOnnx()).save(str(folder / "lgamma.pt"))
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=x[:, :3].argmax(1))
    (folder / "notes.pt").write_text("not a model")
    return folder


def pared(stack: Stack, folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    return run_pared(line.split(), cwd=folder, env=stack.env | {"COLUMNS": "140"})


def test_prune_uploads_follows_downloads_and_reports(embedded: Stack, files: Path) -> None:
    done = pared(
        embedded, files, "prune mlp.pt --data data.npz --channels 50% --epochs 1 -o small.pt -o small.safetensors"
    )
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    assert "smaller" in done.stdout
    assert "retrain" in done.stderr
    verdict = done.stdout[:60]
    assert "smaller" in verdict
    assert verdict not in done.stderr
    assert (files / "small.pt").stat().st_size < (files / "mlp.pt").stat().st_size
    assert len(load_file(files / "small.safetensors")) == 4


def test_a_goal_is_told_first(embedded: Stack, files: Path) -> None:
    done = pared(embedded, files, "prune mlp.pt --data data.npz --target params=40% --epochs 1 -o goal.pt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Goal met: ")
    assert "frontier.csv" in done.stdout
    sizes = [sum(p.numel() for p in torch.jit.load(files / name).parameters()) for name in ("mlp.pt", "goal.pt")]
    assert sizes[1] <= 0.4 * sizes[0]


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (
            (
                "--weights 95% --schedule cubic --stages 50%,80% --ramp 0.6 --regrow 10% --quantize 5 --exclude 2 "
                "--teach --epochs 3 --optimizer sgd --lr 0.02 --lr-schedule cosine --warmup 5% --momentum 0.8 "
                "--nesterov --weight-decay 0.0001 --patience 2 --batch-size 32 --precision bfloat16 --seed 7 "
                "--augment horizontal_flip --augment crop=2 --augment color_jitter=0.2 --augment resized_crop=0.5 "
                "-o small.packed"
            ),
            {
                "granularity": "weight",
                "amount": 0.95,
                "schedule": "cubic",
                "stages": [0.5, 0.8],
                "ramp": 0.6,
                "regrow": 0.1,
                "quantize": {"bits": 5},
                "exclude": ["2"],
                "retrain": {
                    "teach": True,
                    "epochs": 3,
                    "optimizer": "sgd",
                    "lr": 0.02,
                    "lr_schedule": "cosine",
                    "warmup": 0.05,
                    "momentum": 0.8,
                    "nesterov": True,
                    "weight_decay": 0.0001,
                    "patience": 2,
                    "batch_size": 32,
                    "precision": "bfloat16",
                    "augment": {
                        "horizontal_flip": {},
                        "crop": {"padding": 2},
                        "color_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
                        "resized_crop": {"scale": [0.5, 1.0]},
                    },
                },
                "seed": 7,
                "outputs": ["packed"],
            },
        ),
        (
            "--channels 50% --schedule iterative --steps 2 --layer-amount 0=30% --layer-amount *=0 --criterion taylor",
            {
                "granularity": "channel",
                "amount": 0.5,
                "schedule": "iterative",
                "steps": 2,
                "amounts": {"0": 0.3, "*": 0.0},
                "criterion": "taylor",
                "retrain": {},
            },
        ),
        (
            "--target params=25% --target macs=0.5 --max-accuracy-drop 1% --round-to 8",
            {
                "granularity": "channel",
                "target": {"params": 0.25, "macs": 0.5, "max_accuracy_drop": 0.01},
                "round_to": 8,
            },
        ),
        (
            "--channels 50% --output-width project",
            {"granularity": "channel", "amount": 0.5, "output_width": "project"},
        ),
        (
            "--channels 50% --task segmentation --model-output out --ignore-index 9 --class-weights 1,5",
            {
                "task": "segmentation",
                "output": "out",
                "ignore_index": 9,
                "retrain": {"class_weights": [1.0, 5.0]},
            },
        ),
        (
            "--max-quality-drop 0.02 --class-weights balanced --label-smoothing 0.1",
            {
                "target": {"max_quality_drop": 0.02},
                "retrain": {"class_weights": "balanced", "label_smoothing": 0.1},
            },
        ),
        (
            "--n-m 1:2 --device cuda --latency-device cpu",
            {"granularity": "n:m", "n_m": [1, 2], "device": "cuda", "latency_device": "cpu"},
        ),
        (
            "--channels 50% --dynamic x:2=height --dynamic x:3=width --onnx-opset 18 -o small.onnx",
            {"dynamic": {"x": {"2": "height", "3": "width"}}, "onnx_opset": 18, "outputs": ["onnx"]},
        ),
        ("--channels 50% --dynamic auto -o small.pt2", {"dynamic": "auto", "outputs": ["exported_program"]}),
        ("--residual-blocks 25%", {"granularity": "residual_block", "amount": 0.25}),
        ("--blocks 80% --block-size 2x3 --scope global", {"granularity": "block", "amount": 0.8, "block": [2, 3]}),
    ],
)
def test_each_option_is_a_field_of_the_spec(tmp_path: Path, options: str, fields: dict[str, Any]) -> None:
    sent = sent_by(tmp_path, f"prune {{model}} --data builtin:digits {options}")
    assert sent | fields == sent
    assert listed_spec.validate_python(sent)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (
            (
                "--method static --calibration-samples 64 --calibration-method entropy --max-accuracy-drop 0.01 "
                "--epochs 2 --exclude head -o small.onnx --onnx-opset 17"
            ),
            {
                "method": "static",
                "calibration": {"samples": 64, "method": "entropy"},
                "target": {"max_accuracy_drop": 0.01},
                "retrain": {"epochs": 2},
                "exclude": ["head"],
                "outputs": ["onnx"],
                "onnx_opset": 17,
            },
        ),
        ("--method dynamic --max-quality-drop 0.02", {"method": "dynamic", "target": {"max_quality_drop": 0.02}}),
        ("-o small.pt -o small.packed --seed 3", {"outputs": ["torchscript", "packed"], "seed": 3}),
    ],
)
def test_each_option_of_quantize_is_a_field_of_its_spec(tmp_path: Path, options: str, fields: dict[str, Any]) -> None:
    sent = sent_by(tmp_path, f"quantize {{model}} --data builtin:digits {options}")
    assert sent | fields | {"type": "quantize"} == sent
    assert listed_spec.validate_python(sent)


def sent_by(tmp_path: Path, line: str) -> dict[str, Any]:
    """The spec that a command posts."""
    server = Scripted()
    model = "mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"
    row = {"id": model, "filename": "m.pt", "sha256": "", "size_bytes": 1, "status": "ready"}
    server.say(Answer(body=row), Answer(body=row), Answer(422, body={"title": "Only looking", "status": 422}))
    env = environment(PARED_URL=server.url)
    done = run_pared(line.format(model=model).split(), cwd=tmp_path, env=env)
    server.close()
    assert done.returncode == 2, done.stderr
    sent: dict[str, Any] = json.loads(server.asked[-1].body)
    return sent


def test_values_of_a_teacher_are_a_field_of_its_spec(tmp_path: Path) -> None:
    server = Scripted()
    row = {"id": "mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3", "filename": "m.pt", "sha256": "", "size_bytes": 1, "status": "ready"}
    server.say(Answer(body=row), Answer(body=row), Answer(422, body={"title": "Only looking", "status": 422}))
    line = ["distill", "--teacher", row["id"], "--data", "builtin:digits", "--width", "50%"]
    done = run_pared(
        [*line, "--input-shape", "1,512", "--input-shape", "=16000"],
        cwd=tmp_path,
        env=environment(PARED_URL=server.url),
    )
    server.close()
    assert done.returncode == 2, done.stderr
    sent = json.loads(server.asked[-1].body)
    assert sent["example_inputs"] == [{"shape": [1, 512]}, {"value": 16000}]
    assert listed_spec.validate_python(sent)


def test_json_is_all_that_json_prints(embedded: Stack, files: Path) -> None:
    done = pared(embedded, files, "prune mlp.pt --weights 90% --json -o sparse.pt")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["job"]["status"] == "succeeded"
    assert printed["report"]["after"]["nonzero_parameters"] < printed["report"]["before"]["nonzero_parameters"]
    assert printed["files"] == ["sparse.pt"]

    job_id = printed["job"]["id"]
    listed = json.loads(pared(embedded, files, "jobs ls --json").stdout)
    assert job_id in [job["id"] for job in listed]
    assert job_id in pared(embedded, files, "jobs ls --status succeeded").stdout
    assert json.loads(pared(embedded, files, f"report {job_id} --json").stdout) == printed["report"]
    assert "succeeded" in pared(embedded, files, f"jobs show {job_id}").stdout
    assert "succeeded" in pared(embedded, files, "jobs ls").stdout
    assert pared(embedded, files, f"jobs watch {job_id} -o again.pt").returncode == 0
    assert (files / "again.pt").read_bytes() == (files / "sparse.pt").read_bytes()
    late = pared(embedded, files, f"jobs cancel {job_id}")
    assert late.returncode == 1
    assert "ended" in late.stderr


def test_a_plan_takes_the_options_of_prune_and_makes_no_job(embedded: Stack, files: Path) -> None:
    options = "mlp.pt --data data.npz --channels 50% --epochs 1 -o planned.pt -o planned.packed"
    done = pared(embedded, files, f"plan {options}")
    assert done.returncode == 0, done.stderr
    assert "16 channels" in done.stdout
    assert "model.packed, bytes (about)" in done.stdout
    assert "Note: The bytes of model.packed are about so many" in done.stdout
    assert not (files / "planned.pt").exists()
    plan = json.loads(pared(embedded, files, f"plan {options} --json").stdout)
    report = json.loads(pared(embedded, files, f"prune {options} --json").stdout)["report"]
    assert plan["after"]["parameters"] == report["after"]["parameters"]
    assert plan["files"]["model.pt"]["size_bytes"] == (files / "planned.pt").stat().st_size
    refused = pared(embedded, files, "plan mlp.pt --channels 50% --include conv*")
    assert refused.returncode == 2
    assert "matches no layer" in refused.stderr


def test_distill_into_the_teacher_at_half_width(embedded: Stack, files: Path) -> None:
    done = pared(
        embedded,
        files,
        "distill --teacher mlp.pt --width 50% --data data.npz --epochs 1 -o student.safetensors "
        "--loss kl --loss labels=0.1 --loss hint=0.5 --temperature 2",
    )
    assert done.returncode == 0, done.stderr
    assert "hint: " in done.stdout
    assert (files / "student.safetensors").is_file()


def test_a_regression_is_distilled_by_the_distance_of_the_outputs(embedded: Stack, files: Path) -> None:
    torch.jit.script(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))).save(str(files / "regressor.pt"))
    x = np.load(files / "data.npz")["x"]
    np.savez(files / "sums.npz", x=x, y=x.sum(1))
    line = "distill --teacher regressor.pt --width 0.5 --data sums.npz --task regression --epochs 1 --json"
    done = pared(embedded, files, line)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job"]["spec"]["loss"] == {"kind": "output_mse"}
    chosen = pared(embedded, files, f"{line} --loss knowledge")
    assert chosen.returncode == 2
    assert "/loss" in chosen.stderr


def test_what_was_noticed_in_an_upload_is_told(embedded: Stack, files: Path) -> None:
    rows = [f"{i % 7},{i % 5},{i % 3},{i % 2},{('red', 'green')[i % 2]},{i % 3}" for i in range(90)]
    (files / "table.csv").write_text("\n".join(["a,b,c,d,colour,y", *rows]))
    done = pared(embedded, files, "prune mlp.pt --data table.csv --channels 50% --epochs 1 --json")
    assert done.returncode == 0, done.stderr
    assert "Note: The column 'colour' became 2 columns" in done.stderr


def test_pruned_weights_come_with_their_architecture(embedded: Stack, files: Path) -> None:
    (files / "weights.pt").write_bytes(zoo.upload("mlp", "state_dict"))
    (files / "mlp.json").write_text(json.dumps(zoo.architecture("mlp")))
    arguments = "--architecture mlp.json --input-shape 2,16 --channels 50% -o small.safetensors"
    done = pared(embedded, files, f"prune weights.pt {arguments}")
    assert done.returncode == 0, done.stderr
    assert "small.architecture.json" in done.stdout
    build(json.loads((files / "small.architecture.json").read_text())).load_state_dict(
        load_file(files / "small.safetensors")
    )


def test_a_part_of_a_checkpoint_is_pruned_without_its_architecture_and_put_back(embedded: Stack, files: Path) -> None:
    torch.manual_seed(0)
    weights = {name: nn.Linear(6, 8).half().state_dict() for name in ("model", "ema")}
    torch.save(weights | {"epoch": 3}, files / "last.pth")
    refused = pared(embedded, files, "prune last.pth --weights 50%")
    assert refused.returncode == 1
    assert "--state-dict ema" in refused.stderr
    done = pared(embedded, files, "prune last.pth --state-dict ema --weights 50% -o small.pth")
    assert done.returncode == 0, done.stderr
    assert "Not run: no architecture was given" in " ".join(done.stdout.split())
    found = torch.load(files / "small.pth", weights_only=True)
    assert (found["epoch"], int((found["ema"]["weight"] == 0).sum()), found["ema"]["bias"].dtype) == (3, 24, torch.half)
    assert all(torch.equal(tensor, weights["model"][name]) for name, tensor in found["model"].items())
    planned = pared(embedded, files, "plan last.pth --state-dict ema --weights 50% --json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["after"]["nonzero_parameters"] == 56 - 24
    again = pared(embedded, files, "prune mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3 --state-dict ema --weights 50%")
    assert (again.returncode, "name the file" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("prune mlp.pt --channels 50% --input-shape 1,6:text", "/example_inputs/0/dtype"),
        ("prune mlp.pt --channels 50% -o mlp.pt/small.pt", "mlp.pt/small.pt cannot"),
        ("distill --teacher mlp.pt --data builtin:digits", "--width"),
        ("distill --teacher mlp.pt --data builtin:digits --width 0.5 --student-architecture a", "--width"),
        ("up --port 99999", "65535"),
        ("jobs show job_01K9Q5V7M3W8Z2X4Y6A0B1C2D3", "job"),
        ("jobs ls --status finished", "finished"),
        ("squeeze mlp.pt", "squeeze"),
    ],
)
def test_wrong_usage_exits_with_2(embedded: Stack, files: Path, arguments: str, says: str) -> None:
    done = pared(embedded, files, arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("prune mlp.pt --channels half", "half is not a share; write 50% or 0.5"),
        ("prune mlp.pt --channels 50", "'--channels': 50 is 5000 %, not between 0 and 100 %; write 50% or 0.5"),
        ("prune mlp.pt --weights 150%", "'--weights': 150% is 150 %, not"),
        ("prune mlp.pt --weights nan", "nan is"),
        ("distill --teacher mlp.pt --data data.npz --width 50", "'--width': 50 is 5000 %"),
        ("prune mlp.pt", "give a goal, such as --target params=25%, or one of --channels"),
        ("prune mlp.pt --channels 50% --weights 50%", "one of --channels"),
        ("prune mlp.pt --channels 50% --max-accuracy-drop 0.01", "give a goal"),
        ("prune mlp.pt --max-accuracy-drop 1", "1 is 100 %, more than a model has to lose; write 1%"),
        ("quantize mlp.pt --max-quality-drop 2", "write 2% for 2 in a hundred"),
        ("compress mlp.pt --max-quality-drop 1", "write 1% for 1 in a hundred"),
        ("prune mlp.pt --target size=50%", "size=50% is no goal; write one of params=25%"),
        ("prune mlp.pt --target params=2", "'--target': 2 is 200 %, not"),
        ("prune mlp.pt --n-m 2/4", "'--n-m': 2/4 is not a pair of numbers; write 2:4"),
        ("prune mlp.pt --blocks 50% --block-size 4", "'--block-size': 4 is not a pair of numbers; write 4x4"),
        ("prune mlp.pt --channels 50% --layer-amount 30%", "'--layer-amount': 30% names no layers"),
        ("prune mlp.pt --weights 90% --stages 50%,high", "'--stages': high is not a share"),
        ("prune mlp.pt --weights 90% --schedule slow", "'--schedule'"),
        ("prune mlp.pt --weights 90% --quantize 4 -o small.pt", "-o with the ending .packed"),
        ("prune mlp.pt --channels 50% -o small.h5", ".safetensors"),
        ("prune mlp.pt --channels 50% --onnx-opset 10 -o small.onnx", "greater than or equal to 11"),
        ("prune mlp.pt --channels 50% --dynamic height -o small.onnx", "'--dynamic': height"),
        ("prune mlp.pt --channels 50% --dynamic auto --dynamic x:2=h -o small.onnx", "leave the others out"),
        ("prune mlp.pt --channels 50% --epochs 3 --lr-schedule cosine", "leave out --epochs, --lr-schedule"),
        ("prune mlp.pt --channels 50% --data data.npz --input-shape 1,6", "--input-shape"),
        ("prune mlp.pt --channels 50% --input-shape 1x6", "1x6"),
        ("prune mlp.pt --channels 50% --input-shape {1}", "{1} is not JSON"),
        ("prune nowhere.pt --channels 50%", "there is no file nowhere.pt"),
        ("prune mlp.pt --data nowhere.npz --channels 50%", "'--data': there is no file nowhere.npz"),
        ("prune mlp.pt --architecture nowhere.json --channels 50%", "there is no file nowhere.json"),
        ("quantize mlp.pt --epochs 3", "training needs --data"),
        ("quantize mlp.pt --method int4", "'--method'"),
        ("distill --teacher mlp.pt --data nowhere.npz --width 0.5", "there is no file nowhere.npz"),
        ("distill --teacher mlp.pt --data data.npz --student nowhere.pt", "there is no file nowhere.pt"),
        ("distill --teacher mlp.pt --data data.npz --width 0.5 --loss output_mse --alpha 1", "--loss knowledge"),
        ("distill --teacher mlp.pt --data data.npz --width 0.5 --loss magic", "magic is no loss; there are knowledge"),
        ("distill --teacher mlp.pt --data data.npz --width 0.5 --loss kl=much", "write kl=0.5"),
        ("distill --teacher mlp.pt --data data.npz --width 0.5 --loss kl --labels 0.1", "--loss labels=0.1"),
        ("distill --teacher mlp.pt --data data.npz --width 0.5 --loss knowledge --loss hint", "a loss by itself"),
        ("distill --teacher mlp.pt --data data.npz --width 0.5 --loss hint --temperature 2", "softens kl"),
        ("distill --teacher mlp.pt --data data.npz --width 0.5 --loss nowhere.json", "there is no file nowhere.json"),
    ],
)
def test_what_is_wrong_in_the_line_is_told_before_anything_is_sent(files: Path, arguments: str, says: str) -> None:
    server = Scripted()
    env = environment(PARED_URL=server.url, COLUMNS="140")
    done = run_pared(arguments.split(), cwd=files, env=env)
    server.close()
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert server.asked == []


def test_help_says_the_defaults() -> None:
    for command, defaults in {
        "prune": [Train().epochs, "0.01 for sgd, 0.001 for adam", Train().batch_size, "sgd"],
        "distill": [
            TeachTrain().optimizer,
            TeachTrain.usual_length,
            "0.01 for sgd, 0.003 for adam",
            TeachTrain().lr_schedule,
            TeachTrain().warmup,
            Knowledge(kind="knowledge").temperature,
            "knowledge; output_mse for a regression",
        ],
        "up": ["PARED_PORT or 8000"],
    }.items():
        done = run_pared([command, "--help"], cwd=Path("/"), env=environment(COLUMNS="200"))
        assert all(f"[default: ({default})]" in done.stdout for default in defaults), done.stdout


def test_make_up_takes_a_port() -> None:
    root = Path(__file__).parents[3]
    for given, command in [(["PORT=8001"], "pared up --port 8001"), ([], "pared up")]:
        line = ["make", "-n", "--no-print-directory", "up", *given]
        done = subprocess.run(line, cwd=root, env=environment(), capture_output=True, text=True)
        assert done.stdout.strip().splitlines()[-1].rstrip().endswith(command)


@pytest.mark.parametrize(
    ("command", "variable", "value", "status", "says"),
    [
        ("up", "PARED_PORT", "abc", 2, "PARED_PORT: "),
        ("migrate", "PARED_DATABASE_URL", "postgresql://127.0.0.1:1/pared", 1, "database does not answer"),
        ("migrate", "PARED_DATA_DIR", "/dev/null/pared", 2, "/dev/null/pared"),
        ("jobs ls", "PARED_URL", "localhost:8000", 2, "write http://"),
    ],
)
def test_a_wrong_setting_is_told_in_a_line(
    tmp_path: Path, command: str, variable: str, value: str, status: int, says: str
) -> None:
    env = environment(**{"PARED_DATA_DIR": str(tmp_path), variable: value})
    done = run_pared(command.split(), cwd=Path("/"), env=env)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_brackets_in_what_a_server_says_are_text() -> None:
    server = Scripted()
    detail = "layer conv[0] of [bold]net[/red] :fire:"
    job = {"id": "job_1", "type": "prune", "status": "failed", "spec": {}, "error": {"code": "x", "detail": detail}}
    server.say(Answer(body={"data": [job], "has_more": False, "next_cursor": None}))
    env = environment(PARED_URL=server.url, COLUMNS="200")
    done = run_pared(["jobs", "ls"], cwd=Path("/"), env=env)
    server.close()
    assert done.returncode == 0, done.stderr
    assert detail in done.stdout


def test_the_shape_of_the_inputs_can_be_given_without_data(embedded: Stack, files: Path) -> None:
    done = pared(embedded, files, "prune mlp.pt --channels 50% --input-shape 2,6 --json")
    assert done.returncode == 0, done.stderr
    spec = json.loads(done.stdout)["job"]["spec"]
    assert spec["example_inputs"] == [{"shape": [2, 6], "dtype": "float32"}]


def test_values_of_arguments_can_be_given(embedded: Stack, files: Path) -> None:
    torch.jit.save(torch.jit.script(Rated().eval()), files / "rated.pt")
    done = pared(embedded, files, "prune rated.pt --channels 50% --input-shape 2,12 --input-shape =16000 -o small.pt")
    assert done.returncode == 0, done.stderr
    assert torch.jit.load(files / "small.pt")(torch.zeros(1, 12), 16000).shape == (1, 3)


def test_a_file_that_is_no_model_exits_with_1_and_advice(embedded: Stack, files: Path) -> None:
    done = pared(embedded, files, "prune notes.pt --channels 50%")
    assert done.returncode == 1
    assert "notes.pt" in done.stderr


def test_a_job_that_fails_exits_with_1_and_its_error(embedded: Stack, files: Path) -> None:
    done = pared(embedded, files, "prune mlp.pt --data builtin:digits --channels 50%")
    assert done.returncode == 1
    assert "shape" in done.stderr


ONE_MISSING = "lgamma.pt --data data.npz --channels 50% --epochs 1 -o kept.onnx -o kept.pt"


def test_a_format_that_cannot_be_written_exits_with_4_after_the_others_are_there(embedded: Stack, files: Path) -> None:
    done = pared(embedded, files, f"prune {ONE_MISSING}")
    assert done.returncode == 4, done.stderr
    assert "pared: kept.onnx was not written: ONNX cannot hold this model" in done.stderr
    assert "Note: onnx is not among the files: ONNX cannot hold" in done.stdout
    assert done.stderr.index("onnx will be missing from the result") < done.stderr.index("retrain: epoch 1")
    assert (files / "kept.pt").is_file()
    assert not (files / "kept.onnx").exists()

    job_id = next(word for word in done.stderr.split() if word.startswith("job_"))
    watched = pared(embedded, files, f"jobs watch {job_id} -o again.pt --json")
    assert watched.returncode == 4
    assert "pared: onnx was not written" in watched.stderr
    told = json.loads(watched.stdout)
    assert [failed["format"] for failed in told["report"]["failed_outputs"]] == ["onnx"]
    assert told["job"]["result"]["failed_outputs"] == told["report"]["failed_outputs"]
    assert told["files"] == ["again.pt"]


@pytest.mark.campaign  # `test_formats` has the same of plans, without a command
def test_a_plan_says_which_format_cannot_be_written(embedded: Stack, files: Path) -> None:
    planned = pared(embedded, files, f"plan {ONE_MISSING}")
    assert planned.returncode == 0, planned.stderr
    assert "model.pt, bytes" in planned.stdout
    assert "onnx is not among the files" in planned.stdout


def test_where_no_format_can_be_written_it_exits_with_1_before_training(embedded: Stack, files: Path) -> None:
    done = pared(embedded, files, "prune lgamma.pt --data data.npz --channels 50% --epochs 1000 -o none.onnx")
    assert done.returncode == 1
    assert "`outputs` may name `torchscript`" in done.stderr
    assert "epoch 1" not in done.stderr


def test_no_server_is_named(files: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env = os.environ | {"PARED_URL": f"http://127.0.0.1:{free.getsockname()[1]}"}
        done = run_pared(["jobs", "ls"], cwd=Path("/"), env=env)
    assert done.returncode == 1
    assert "pared up" in done.stderr


def test_ctrl_c_detaches_and_the_job_goes_on(embedded: Stack, files: Path) -> None:
    log = files / "detached.log"
    running = fork("pared.cli", DETACHED.split(), cwd=files, env=embedded.env, files=(os.devnull, os.devnull, log))
    wait_for(lambda: (log.exists() and "epoch" in log.read_text()) or running.poll() is not None, "retraining")
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    told = log.read_text()
    job_id = next(word for word in told.split() if word.startswith("job_"))
    assert f"pared jobs watch {job_id}" in told
    assert embedded.job(job_id)["status"] == "running"
    assert pared(embedded, files, f"jobs cancel {job_id}").returncode == 0
    watched = pared(embedded, files, f"jobs watch {job_id}")
    assert watched.returncode == 1
    assert "canceled" in watched.stderr


def test_keys_are_made_listed_and_revoked(embedded: Stack, files: Path) -> None:
    secret = pared(embedded, files, "keys add me").stdout.strip()
    assert secret.startswith("pared_")
    listed = json.loads(pared(embedded, files, "keys ls --json").stdout)
    key_id = next(key["id"] for key in listed if key["name"] == "me")
    assert pared(embedded, files, f"keys revoke {key_id}").returncode == 0
    assert pared(embedded, files, f"keys revoke {key_id}").returncode == 2


def test_a_worker_that_lives_here_is_found(embedded: Stack, files: Path) -> None:
    done = pared(embedded, files, "worker --check")
    assert done.returncode == 0
    assert "runs jobs on cpu" in done.stdout


def test_cuda_without_a_gpu_exits_with_1_and_advice(embedded: Stack, files: Path) -> None:
    done = pared(embedded, files, "prune mlp.pt --data data.npz --channels 50% --device cuda")
    assert done.returncode == 1
    assert "no worker with a GPU that works" in done.stderr


@pytest.mark.parametrize(
    ("device", "problem", "code"),
    [([], "No NVIDIA GPU is visible.", 1), (["cpu"], "H100 cannot be used: error 304.", 0), (None, "no worker", 1)],
)
def test_the_check_says_whether_jobs_can_run_and_why_not(
    tmp_path: Path, device: list[str] | None, problem: str, code: int
) -> None:
    settings = Settings(data_dir=tmp_path)
    migrate(settings)
    if device is not None:
        row = {"sandbox": "standard", "device": "1 CPU", "devices": device, "device_problem": problem}
        with make_sessions(make_engine(settings.effective_database_url)).begin() as session:
            session.add(WorkerHeartbeat(name=f"{socket.gethostname()}:1", **row))
    env = environment(PARED_DATA_DIR=str(tmp_path))
    done = run_pared(["worker", "--check"], cwd=tmp_path, env=env)
    assert done.returncode == code
    assert problem in done.stderr


@pytest.mark.parametrize(
    ("gpus", "device", "says"),
    [("0", "auto", "there is no GPU 0 here; visible: none"), ("all", "cpu", "PARED_DEVICE is cpu")],
)
def test_gpus_that_are_not_there_are_told_in_a_line(tmp_path: Path, gpus: str, device: str, says: str) -> None:
    env = environment(PARED_DATA_DIR=str(tmp_path), PARED_DEVICE=device, CUDA_VISIBLE_DEVICES="", COLUMNS="200")
    done = run_pared(["worker", "--gpus", gpus], cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_queue_that_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    done = run_pared(["worker", "--queues", "gpu"], cwd=tmp_path, env=environment(COLUMNS="200"))
    assert done.returncode == 2
    assert "there is no queue gpu: write some of auto, cpu, cuda, quick" in done.stderr


EXTRAS = {
    "up": "service,worker",
    "worker --check": "worker",
    "migrate": "service",
    "keys ls": "service",
    "keys add me": "service",
}
WITHOUT_EXTRAS = """
import sys
sys.modules['sqlalchemy'] = sys.modules['pydantic_settings'] = None
from pared.cli import main
for line in {commands}:
    sys.argv = ['pared', *line.split()]
    try:
        main()
    except SystemExit as ended:
        print('ended with', ended.code, file=sys.stderr, flush=True)
"""


def test_the_base_install_says_what_is_missing(tmp_path: Path) -> None:
    code = WITHOUT_EXTRAS.format(commands=list(EXTRAS))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    told = done.stderr.replace("\n", " ").split("ended with 2")
    assert [
        f"pip install 'pared[{extras}]'" in words for words, extras in zip(told, EXTRAS.values(), strict=False)
    ] == [True for _ in EXTRAS], done.stderr
