"""Makes students of their teacher: cut from it by width and depth, also to a size, or begun with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pared.compression.coupling import Removed
from pared.compression.loading import LoadedModel
from pared.compression.measuring.latency import TIMING_NOISE
from pared.compression.measuring.size import count_macs, count_parameters
from pared.compression.pruning.channels import ChannelRemoval, RemovableChannels
from pared.compression.pruning.importance import CalibrationStatistics
from pared.compression.pruning.residual_blocks import BlockRemoval, RemovableBlocks
from pared.errors import NothingToPrune, ValidationError
from pared.specs import TeacherCut
from pared.wording import shortened

_FINEST = 1000  # widths are tried to a thousandth

Timed = Callable[[LoadedModel, int], float]
"""`(student, batch size)` -> the time of its forward pass as a share of the teacher's."""
_POINTER = "/student/from_teacher"


@dataclass(frozen=True)
class CutStudent:
    """A student as it was cut from its teacher. `removed`, `reasons`, `output_dims`: as `ChannelRemoval` has them.

    `width`: the share of channels that was kept. `layers`, `dropped`: how many residual blocks, or layers of a
    transformer, the teacher has, and the names of those that went; None where depth was no matter.
    """

    loaded: LoadedModel
    removed: Removed
    reasons: dict[str, str]
    output_dims: dict[str, int]
    width: float
    layers: int | None
    dropped: list[str]


def cut_student(
    cut: TeacherCut,
    teacher: LoadedModel,
    example: Sequence[Tensor],
    *,
    uniform: bool = False,
    statistics: CalibrationStatistics | None = None,
    timed: Timed | None = None,
    found: tuple[float, int | None] | None = None,
    log: Callable[[str], None] = lambda _: None,
    tick: Callable[[], None] = lambda: None,
) -> CutStudent:
    """The teacher with a part of its layers, and of the channels of those that are left.

    Args:
        example: the teacher's inputs, on CPU, in a batch of at least 2.
        uniform: of a model folder, keep to widths that its config can say.
        statistics: of training samples, for `drop` by importance.
        timed: measures a student, where latency is a target.
        found: the width, and the number of layers, that an earlier attempt found for the target; they are kept to.
        log: told what was chosen for a target.
        tick: called now and then, as a sign of life.

    Raises:
        NothingToPrune: nothing can go; the text says why.
        ValidationError: no student is as small as the target.
    """
    cutting = _Cutting(cut, teacher, example, uniform=uniform, statistics=statistics)
    if cut.target is None:
        return cutting.made(*cutting.shares(cut.width or 1.0, cut.depth or 1.0))
    if found is not None:
        return cutting.made(*found)
    while True:
        width, kept = _largest(cut, cutting, teacher, example, timed, tick)
        if cutting.holds(width, kept):
            break
    log(f"the largest student within the target has {cutting.described(width, kept)}")
    return cutting.made(width, kept)


def _largest(
    cut: TeacherCut,
    cutting: _Cutting,
    teacher: LoadedModel,
    example: Sequence[Tensor],
    timed: Timed | None,
    tick: Callable[[], None],
) -> tuple[float, int | None]:
    """The width and the number of layers of the largest student that meets the target.

    Raises:
        ValidationError: none does.
    """
    assert cut.target is not None  # noqa: S101 - the caller has looked
    asked, batch_size = cut.target.sizes, cut.target.latency_batch_size
    if "latency" in asked:
        asked["latency"] *= 1 - TIMING_NOISE
    of_teacher = _sizes(teacher.module, example)
    if "macs" in asked and not of_teacher["macs"]:
        text = "Multiply-adds could not be counted: the teacher does not run on a single sample, or has none."
        raise ValidationError(text, errors=[{"pointer": f"{_POINTER}/target/macs", "detail": text}])
    reached: dict[str, float] = {}

    def meets(step: int) -> bool:
        nonlocal reached
        tick()
        student = cutting.uncut(*candidates(step), to_count="latency" not in asked)
        sizes = _sizes(student.module, example)
        reached = {name: (sizes[name] or 0) / (of_teacher[name] or 1) for name in asked if name in sizes}
        fits = all(share <= asked[name] + 1e-12 for name, share in reached.items())
        if not fits or "latency" not in asked:
            return fits
        assert timed is not None  # noqa: S101 - who asks for a latency says how it is measured
        reached["latency"] = timed(student, batch_size)
        return reached["latency"] <= asked["latency"]

    layers = cutting.layers_found if cut.depth != 1 else None
    if cut.width is not None and layers is None:
        cutting.shares(1.0, 0.5)  # says why there is no layer to find a number of
    by_layers = cut.width is not None and layers is not None
    alike = cut.width is None and cut.depth is None and layers is not None
    kept_of_both: int | None = None

    def candidates(step: int) -> tuple[float, int | None]:
        if by_layers:
            return cut.width or 1.0, step if step != layers else None
        share = step / _FINEST
        if kept_of_both is not None:
            return share, kept_of_both
        return cutting.shares(share, share if alike else cut.depth or 1.0)

    low, high = 1, (layers or 1 if by_layers else _FINEST) + 1
    if not meets(1):
        wanted = " and ".join(f"{most:.1%} of the {name}" for name, most in cut.target.sizes.items())
        has = " and ".join(f"{share:.1%} of the {name}" for name, share in reached.items())
        text = (
            f"No student cut from this teacher is as small as that: the smallest has {has}, and at most {wanted} was "
            "asked for. Ask for less, leave `width` and `depth` to the search, or name an architecture as the student."
        )
        raise ValidationError(text, errors=[{"pointer": f"{_POINTER}/target", "detail": text}])
    low = _last(meets, low, high)
    if alike:  # a layer is a large step: with as many of them, as wide as can be
        kept_of_both = candidates(low)[1]
        low = _last(meets, low, high)
    return candidates(low)


def _last(meets: Callable[[int], bool], low: int, high: int) -> int:
    """The last number that meets something which `low` and those below a bound do, and `high` does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


def _sizes(module: nn.Module, example: Sequence[Tensor]) -> dict[str, int | None]:
    return {"params": count_parameters(module)[0], "macs": count_macs(module, example)}


class _Cutting:
    """Cuts a teacher, and keeps what was found of it for each depth."""

    def __init__(
        self,
        cut: TeacherCut,
        teacher: LoadedModel,
        example: Sequence[Tensor],
        *,
        uniform: bool,
        statistics: CalibrationStatistics | None,
    ) -> None:
        self._cut, self._teacher, self._example = cut, teacher, example
        self._uniform, self._statistics = uniform, statistics
        self._blocks: RemovableBlocks | None = None
        self._none: NothingToPrune | None = None
        self._shallow: dict[int, tuple[BlockRemoval, list[int]]] = {}
        self._channels: dict[int | None, RemovableChannels] = {}

    @property
    def layers_found(self) -> int | None:
        """How many layers could go; None: there are none."""
        if self._blocks is None and self._none is None:
            try:
                self._blocks = RemovableBlocks(self._teacher, self._example)
            except NothingToPrune as error:
                self._none = error
        return None if self._blocks is None or len(self._blocks.layers) < 2 else len(self._blocks.layers)

    def shares(self, width: float, depth: float) -> tuple[float, int | None]:
        """The width, and how many layers stay; None: all, whatever there are.

        Raises:
            NothingToPrune: layers are to go, and none can.
        """
        if depth == 1:
            return width, None
        layers = self.layers_found
        if layers is None:
            if self._none is not None:
                raise self._none
            raise NothingToPrune(
                "The teacher has a single residual block, and one stays: leave `depth` out, and give `width`."
            )
        kept = max(1, round(depth * layers))
        return width, kept if kept < layers else None

    def uncut(self, width: float, kept: int | None, *, to_count: bool) -> LoadedModel:
        """The student unchecked. `to_count`: it is not timed."""
        if width == 1:
            return self._shallower(kept)
        channels = self._channels_of(kept)
        return channels.without(channels.chosen(1 - width), to_count=to_count)

    def holds(self, width: float, kept: int | None) -> bool:
        """Whether all of it can go together; if not, `uncut` answers otherwise from now on."""
        return width == 1 or self._channels_of(kept).hold(1 - width)

    def made(self, width: float, kept: int | None) -> CutStudent:
        """The student.

        Raises:
            NothingToPrune: nothing can go.
        """
        shallower, removal = self._shallower(kept), self._block_removal(kept)
        narrower: ChannelRemoval | None = None
        if width != 1:
            narrower = self._channels_of(kept).removal(1 - width)
        elif removal is None:
            raise NothingToPrune("Nothing goes: all channels and all layers stay. Give a smaller `width` or `depth`.")
        removed = {**({} if removal is None else removal.removed), **({} if narrower is None else narrower.removed)}
        reasons = narrower.reasons if narrower is not None else {} if removal is None else removal.reasons
        names = [] if self._blocks is None else self._blocks.layers
        gone = [] if kept is None else self._shallow[kept][1]
        return CutStudent(
            loaded=shallower if narrower is None else narrower.loaded,
            removed=removed,
            reasons=reasons,
            output_dims={} if narrower is None else narrower.output_dims,
            width=width,
            layers=len(names) if kept is not None else None,
            dropped=[names[index] for index in gone],
        )

    def described(self, width: float, kept: int | None) -> str:
        """In words."""
        of = "" if kept is None else f" and {kept} of {self.layers_found} layers"
        return f"{width:.1%} of the channels{of}"

    def _channels_of(self, kept: int | None) -> RemovableChannels:
        if kept not in self._channels:
            self._channels[kept] = RemovableChannels(
                self._shallower(kept), self._example, scope="layer", uniform=self._uniform
            )
        return self._channels[kept]

    def _shallower(self, kept: int | None) -> LoadedModel:
        removal = self._block_removal(kept)
        return self._teacher if removal is None else removal.loaded

    def _block_removal(self, kept: int | None) -> BlockRemoval | None:
        if kept is None or kept == self.layers_found:
            return None
        assert self._blocks is not None  # noqa: S101 - some of its layers stay
        if kept not in self._shallow:
            if self._cut.drop == "evenly":
                going = self._blocks.evenly(kept)
            else:
                going = self._blocks.least_important(kept, self._statistics)
            self._shallow[kept] = self._blocks.without(going), going
        return self._shallow[kept][0]


# -- beginning with the teacher's weights -------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """How much of a student's weights is its teacher's: parameters, and tensors by name."""

    parameters: int
    tensors: list[str]


def take_weights(teacher: nn.Module, student: nn.Module) -> Taken:
    """Give the student each tensor of the teacher's that has the name and the shape of one of its own, in place.

    Raises:
        ValidationError: none has.
    """
    of_teacher, of_student = teacher.state_dict(), student.state_dict()
    fitting = {
        name: of_teacher[name]
        for name, tensor in of_student.items()
        if name in of_teacher and of_teacher[name].shape == tensor.shape
    }
    parameters = dict(student.named_parameters(remove_duplicate=False))
    taken = [name for name in fitting if name in parameters]
    if not taken:
        text = (
            "No tensor of the student has the name and the shape of one of the teacher's, so that nothing can be taken "
            f"from it. The student's are {_shapes(of_student)}; the teacher's are {_shapes(of_teacher)}. Leave "
            "`student_weights` out, or give the layers the teacher's names."
        )
        raise ValidationError(text, errors=[{"pointer": "/student_weights", "detail": text}])
    with torch.no_grad():
        for name, tensor in fitting.items():
            of_student[name].copy_(tensor)
    seen: dict[int, int] = {parameters[name].data_ptr(): parameters[name].numel() for name in taken}
    return Taken(sum(seen.values()), taken)


def _shapes(state: Mapping[str, Tensor]) -> str:
    return shortened([f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()], 8)
