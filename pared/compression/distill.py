"""Distillation: the losses as pure functions, and what a student learns from a teacher in the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pared.compression.coupling.interpreter import reloaded
from pared.compression.devices import device_of, place, place_graph
from pared.compression.gradients import Loss
from pared.compression.measure import (
    Inputs,
    Samples,
    answers,
    checked_output,
    forward,
    label_loss,
    own_failures,
)
from pared.compression.train import seed_of
from pared.errors import ShapeMismatch, ValidationError
from pared.specs import Knowledge, OutputMse, Task

MAX_PROJECTION = 1 << 26
"""Most weights of one learned projection: 256 MiB, and three times that with its optimizer state."""


# -- the losses ---------------------------------------------------------------------------------


def output_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """L = (1/N) Σ_i ‖f(x_i; θ_t) − f′(x_i; θ_s)‖²: summed over outputs, mean over the batch.

    Matching logits by their squared distance is Ba and Caruana 2014 (arXiv:1312.6184).

    Args:
        student: outputs (N, …), with gradient.
        teacher: outputs of the same shape, without.
    """
    return (teacher - student).square().reshape(len(student), -1).sum(1).mean()


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · (1/N) Σ_i KL(σ(z_t,i / T) ‖ σ(z_s,i / T)), σ the softmax.

    The factor T² keeps the gradients' size, which softening divides by T² (Hinton et al. 2015, arXiv:1503.02531).

    Args:
        student: logits (N, C), with gradient.
        teacher: logits (N, C), without.
        temperature: T.
    """
    # kl_div takes log-probabilities of the student first, and sums p_t · (log p_t − log p_s) a sample.
    student_log = functional.log_softmax(student / temperature, dim=1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=1)
    return functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2


def knowledge(
    student: Tensor,
    teacher: Tensor,
    softened: Sequence[tuple[Tensor, Tensor]],
    *,
    alpha: float,
    temperature: float,
) -> Tensor:
    """L = α · (1/N) Σ_i ‖f_t(x_i) − f_s(x_i)‖² + (1−α) · T² · (1/N) Σ_i KL(σ(z_t,i / T) ‖ σ(z_s,i / T)).

    Args:
        student, teacher: outputs (N, C).
        softened: pairs (z_s, z_t), each (N, D): the logits, or the outputs of intermediate layers ("hints", Romero
            et al. 2015, arXiv:1412.6550). Of several pairs the KL terms are averaged.
    """
    kl = torch.stack([softened_kl(z_s, z_t, temperature) for z_s, z_t in softened]).mean()
    return alpha * output_mse(student, teacher) + (1 - alpha) * kl


def with_labels(loss: Tensor, label: Tensor, share: float) -> Tensor:
    """(1−λ) · L + λ · CE, the share λ of the loss being what the labels say."""
    return (1 - share) * loss + share * label


# -- in the training loop -----------------------------------------------------------------------


class TeachableSamples(Samples, Protocol):
    """Samples that something computed once can travel with."""

    def taught(self, answers: Tensor) -> Samples:
        """The same samples with a teacher's answers, (training samples, …), as their last input in training."""


@dataclass(frozen=True)
class Lesson:
    """What `train.fit` is handed to teach: the data, the loss, and projections that are learned along."""

    data: Samples
    loss: Loss
    companion: nn.Module | None


def lesson(
    kind: OutputMse | Knowledge,
    teacher: nn.Module,
    student: nn.Module,
    data: TeachableSamples,
    example: Sequence[Tensor],
    *,
    task: Task,
    seed: int,
    device: str = "cpu",
) -> Lesson:
    """Prepare what the student learns from the teacher, which stays as it is: in eval mode, without gradients.

    Without feature pairs the teacher's logits are computed once, over the training split in its stored order, and
    travel with the samples. With pairs, whose outputs can be many times larger, the teacher runs beside the student.

    Args:
        example: inputs of both models, with a batch of at least 2.

    Raises:
        ShapeMismatch: the outputs of teacher and student differ in shape.
        ValidationError: a named layer does not exist, gives no tensor, or is too narrow or too wide.
    """
    place(teacher.eval(), device)
    place(student.eval(), device)
    inputs = tuple(tensor.to(device) for tensor in example)
    pairs = kind.features or [] if isinstance(kind, Knowledge) else []
    seen_by = {
        "teacher": Probe(teacher, [pair[0] for pair in pairs], "teacher"),
        "student": Probe(student, [pair[1] for pair in pairs], "student"),
    }
    with torch.no_grad():
        (of_teacher, wide), (of_student, narrow) = (probe(inputs, task) for probe in seen_by.values())
    if of_teacher.shape != of_student.shape:
        raise ShapeMismatch(
            f"For {len(example[0])} samples the teacher answers {tuple(of_teacher.shape)} and the student "
            f"{tuple(of_student.shape)}. A student has as many outputs as its teacher."
        )
    if not isinstance(kind, Knowledge):
        return Lesson(_taught(teacher, data, task, device), _output_loss(task), None)
    if not pairs:
        return Lesson(_taught(teacher, data, task, device), _logit_loss(kind, task), None)
    projections = _projections(pairs, narrow, wide, seed).to(device)
    return Lesson(data, _feature_loss(kind, task, seen_by["teacher"], seen_by["student"], projections), projections)


def _taught(teacher: nn.Module, data: TeachableSamples, task: Task, device: str) -> Samples:
    """The samples with the teacher's outputs over the training split, computed once, where the student runs."""
    return data.taught(answers(teacher, data, "train", task, device=device)[0])


def _output_loss(task: Task) -> Loss:
    def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        *samples, answer = inputs
        return output_mse(forward(student, tuple(samples), task), answer)

    return loss


def _logit_loss(kind: Knowledge, task: Task) -> Loss:
    def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        *samples, answer = inputs
        output = forward(student, tuple(samples), task)
        taught = knowledge(output, answer, [(output, answer)], alpha=kind.alpha, temperature=kind.temperature)
        return with_labels(taught, label_loss(output, targets, task), kind.labels)

    return loss


def _feature_loss(kind: Knowledge, task: Task, teacher: Probe, student: Probe, projections: nn.ModuleList) -> Loss:
    def loss(_: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        with torch.no_grad():
            answer, wide = teacher(inputs, task)
        output, narrow = student(inputs, task)
        softened = [(project(z_s), z_t) for project, z_s, z_t in zip(projections, narrow, wide, strict=True)]
        taught = knowledge(output, answer, softened, alpha=kind.alpha, temperature=kind.temperature)
        return with_labels(taught, label_loss(output, targets, task), kind.labels)

    return loss


def _projections(
    pairs: Sequence[tuple[str, str]], narrow: Sequence[Tensor], wide: Sequence[Tensor], seed: int
) -> nn.ModuleList:
    """For each pair what takes the student's features to the teacher's width: a linear map where they differ."""
    projections = nn.ModuleList()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "projections"))
        for index, ((of_teacher, of_student), z_s, z_t) in enumerate(zip(pairs, narrow, wide, strict=True)):
            if z_t.shape[1] < 2:
                text = (
                    f"The teacher's {of_teacher} gives one number a sample; the softmax of one number says nothing: "
                    'name a wider layer, or use {"kind": "output_mse"}.'
                )
                raise ValidationError(text, errors=[{"pointer": f"/loss/features/{index}", "detail": text}])
            if z_s.shape[1] == z_t.shape[1]:
                projections.append(nn.Identity())
                continue
            if z_s.shape[1] * z_t.shape[1] > MAX_PROJECTION:
                text = (
                    f"The student's {of_student} gives {z_s.shape[1]:,} numbers a sample, the teacher's {of_teacher} "
                    f"{z_t.shape[1]:,}: too many to project. Name later layers, after pooling."
                )
                raise ValidationError(text, errors=[{"pointer": f"/loss/features/{index}", "detail": text}])
            projections.append(nn.Linear(z_s.shape[1], z_t.shape[1]))
    return projections


# -- the outputs of named layers ----------------------------------------------------------------


class Probe:
    """Runs a module and also returns what named layers gave, flattened to (N, D) a layer.

    Args:
        module: any module; it is not changed, and its training mode at the time of the call counts.
        layers: names as in `module.named_modules()`. Of a layer that runs several times the last output counts.
        role: what to call the module in errors.

    Raises:
        ValidationError: there is no such layer; the text lists those that there are.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], role: str) -> None:
        self._module, self._layers, self._role = module, list(layers), role
        self._function: Any = None
        if not layers:
            return
        if isinstance(module, torch.jit.ScriptModule):
            self._function = _capturing(module, self._layers, role)
            return
        known = [name for name, _ in module.named_modules() if name]
        for layer in self._layers:
            if layer not in known:
                raise _unknown_layer(layer, known, role)

    def __call__(self, inputs: Inputs, task: Task) -> tuple[Tensor, list[Tensor]]:
        """The module's output, and the layers' outputs."""
        if not self._layers:
            return forward(self._module, inputs, task), []
        with own_failures():
            output, captured = self._run_script(inputs) if self._function else self._run_eager(inputs)
        features = [
            self._flat(layer, value, len(inputs[0])) for layer, value in zip(self._layers, captured, strict=True)
        ]
        return checked_output(output, len(inputs[0]), task), features

    def _run_script(self, inputs: Inputs) -> tuple[Any, list[Any]]:
        output, *captured = self._function(self._module, *inputs)
        return output, captured

    def _run_eager(self, inputs: Inputs) -> tuple[Any, list[Any]]:
        captured: dict[str, Any] = {}
        named = dict(self._module.named_modules())

        def keeper(layer: str) -> Any:
            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                captured[layer] = output

            return keep

        hooks = [named[layer].register_forward_hook(keeper(layer)) for layer in set(self._layers)]
        try:
            output = self._module(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return output, [captured.get(layer) for layer in self._layers]

    def _flat(self, layer: str, value: Any, samples: int) -> Tensor:
        if isinstance(value, Tensor) and value.dim() >= 2 and len(value) == samples and value.is_floating_point():
            return value.flatten(1)
        given = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        text = (
            f"The {self._role}'s layer {layer} gives {given}; a feature is a float tensor (samples, …). "
            "Name another layer."
        )
        raise ValidationError(text, errors=[{"pointer": "/loss/features", "detail": text}])


def _unknown_layer(layer: str, known: Sequence[str], role: str) -> ValidationError:
    shown = ", ".join(known[:40]) + (f" and {len(known) - 40} more" if len(known) > 40 else "")
    text = f"The {role} has no layer {layer!r} whose output can be read. Its layers are: {shown or 'none'}."
    return ValidationError(text, errors=[{"pointer": "/loss/features", "detail": text}])


def _capturing(module: torch.jit.ScriptModule, layers: Sequence[str], role: str) -> Any:
    """A function `(module, *inputs) -> (output, *outputs of the layers)` made of the module's own graph.

    A ScriptModule takes no hooks. So, in a copy, every call of a submodule is marked before calls are inlined, and
    the marked values become outputs. Weights and the training flag are read from the module at each call. The graph
    API is private to torch; `tests/compression/test_distill.py` pins what is relied on.
    """
    copy: Any = reloaded(module)
    marked: set[str] = set()
    for submodule in copy.modules():
        kind = submodule._c._type().qualified_name()
        if kind not in marked:  # instances of one class share their code
            marked.add(kind)
            for name in submodule._c._method_names():
                method = submodule._c._get_method(name)
                _mark_calls(method.graph, method.graph)
    graph = copy._c._get_method("forward").graph
    torch._C._jit_pass_inline(graph)
    graph = graph.copy()
    place_graph(graph, device_of(module), copy)
    values: dict[str, Any] = {}
    for node in graph.nodes():
        if node.kind() == "prim::TupleConstruct" and _is_module(next(node.inputs(), None)):
            called, output = node.inputs()
            values[_path(called)] = output
        elif node.outputsSize() == 1:
            # Where removing channels had to rewrite a size, calls are inlined in the file: there a layer is the
            # operator that takes its weight.
            for name in [_path(value) for value in node.inputs()]:
                if name.endswith(".weight") and node.kind().startswith(_LAYER_OPERATORS):
                    values.setdefault(name.removesuffix(".weight"), node.output())
    for layer in layers:
        if layer not in values:
            raise _unknown_layer(layer, list(values), role)
    result = graph.create("prim::TupleConstruct", [*graph.outputs(), *(values[layer] for layer in layers)], 1)
    result.output().setType(torch._C.TupleType([value.type() for value in result.inputs()]))
    graph.appendNode(result)
    for _ in list(graph.outputs()):
        graph.eraseOutput(0)
    graph.registerOutput(result.output())
    torch._C._jit_pass_dce(graph)  # drops the marks
    return torch._C._create_function_from_graph("with_features", graph)


_LAYER_OPERATORS = (
    "aten::linear",
    "aten::conv",
    "aten::_conv",
    "aten::embedding",
    "aten::batch_norm",
    "aten::layer_norm",
)


def _mark_calls(graph: Any, block: Any) -> None:
    """After each call of a submodule, a tuple of that submodule and its output, which inlining leaves alone."""
    for node in list(block.nodes()):
        for inner in node.blocks():
            _mark_calls(graph, inner)
        # The second call of a traced module is a method `forward1`.
        if node.kind() == "prim::CallMethod" and node.s("name").startswith("forward"):
            graph.create("prim::TupleConstruct", [next(node.inputs()), node.output()], 1).insertAfter(node)


def _is_module(value: Any) -> bool:
    return value is not None and isinstance(value.type(), torch._C.ClassType)


def _path(value: Any) -> str:
    """`layer1.conv.weight` for a chain of attributes that starts at the module itself, else the empty text."""
    parts: list[str] = []
    while value.node().kind() == "prim::GetAttr":
        parts.append(value.node().s("name"))
        value = next(value.node().inputs())
    return ".".join(reversed(parts)) if value.node().kind() == "prim::Param" else ""
