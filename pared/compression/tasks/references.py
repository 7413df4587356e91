"""Tasks without labels: the reference is what the original model answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pared.compression.tasks.base import PROBE, Labels, StoredLabels
from pared.compression.tasks.outputs import listed_outputs, named_outputs, same_by_number
from pared.compression.tasks.sums import SummedScore, broken, ratio
from pared.errors import ModelFailed
from pared.reports import Comparison
from pared.wording import shortened

_ERROR, _REFERENCE, _PRODUCT, _OWN, _SAME, _PLACES, _COLUMNS = 0, 1, 2, 3, 4, 5, 6  # of what is kept of each output
_NEIGHBOURS = 10
_COMPARED = 2000  # samples among which neighbours are looked for


@dataclass(frozen=True)
class Piece:
    """One tensor of an answer that has a slice for each sample, along `batch_dim`.

    `scale`: the mean of Σ b² of a sample's numbers b, by which the distance of this tensor is divided. `place`: among
    all tensors of the answer.
    """

    path: str
    batch_dim: int
    floating: bool
    scale: float = 1.0
    place: int = 0


@dataclass(frozen=True, kw_only=True)
class Match(SummedScore):
    """The distance to the original's answers: one minus the mean over outputs of the relative error.

    All numbers of a sample lie side by side, (N, D), in the order of `pieces`. Places where the original gives NaN or
    infinity are left out. Integers are compared, and not trained.
    """

    name = "match"
    metric = "match"
    wanted = "tensors"
    unanswered = "left out of all scores"
    softens = False
    has_references = True

    pieces: tuple[Piece, ...] = ()
    shapes: dict[int, list[torch.Size]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Width D -> the shapes of a sample's pieces, as they were met."""

    def labels(self, stored: StoredLabels) -> Labels:
        """None are needed."""
        notes = ["Labels were left out: task=match learns the original's own answers."] if stored.arrays else []
        return Labels(stored.without(), notes=notes)

    def takes(self, output: Tensor) -> bool:
        """Any."""
        return True

    def taken(self, answer: Any, samples: int) -> Tensor:
        """All numbers of all outputs, (N, D)."""
        answers = named_outputs(answer)
        outputs = dict(answers)
        if len(outputs) == len(self.pieces) == 1:  # of a student, which may call it otherwise
            outputs = {self.pieces[0].path: answers[0][1]}
        elif same_by_number([piece.path for piece in self.pieces], list(outputs)):
            outputs |= {piece.path: answers[piece.place][1] for piece in self.pieces if piece.place < len(answers)}
        parts, shapes = [], []
        for piece in self.pieces:
            output = outputs.get(piece.path)
            if output is None or output.dim() <= piece.batch_dim or output.shape[piece.batch_dim] != samples:
                raise ModelFailed(
                    f"The model gives no output {piece.path or 'tensor'} for each of {samples} samples, as the "
                    f"original does: it returns {listed_outputs(answers)}. A student's outputs have the names of its "
                    "teacher's, or are a tuple in the same order."
                )
            output = output.movedim(piece.batch_dim, 0)
            output = torch.view_as_real(output) if output.is_complex() else output
            shapes.append(output.shape[1:])
            parts.append(output.reshape(samples, -1).float())
        taken = torch.cat(parts, 1)
        if (known := self.shapes.setdefault(taken.shape[1], shapes)) != shapes:
            raise ModelFailed(
                f"For each sample the model answers {_listed(shapes)}, where the original answers {_listed(known)}. "
                "Outputs are compared number by number: bring their dimensions into the original's order."
            )
        return taken

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over outputs of e = (1/N) Σ_i ‖a_i − b_i‖² / scale, scale the mean of ‖b‖²; above 1 it is 1 + log e.

        Of an output that is far off, as where the original answers nearly 0, no gradient outweighs all others then.
        """
        errors = []
        for piece, own, reference, _ in self._parts(output, target):
            if piece.floating:
                known = reference.isfinite()
                difference = torch.where(known, own - torch.where(known, reference, own.detach()), 0.0)
                errors.append(difference.square().sum(1).mean() / piece.scale)
        return _bounded(torch.stack(errors)).mean()

    def probed(self, target: Tensor, generator: torch.Generator) -> Tensor:
        """With noise beside the numbers of each output, by its size."""
        noise = torch.randn(target.shape, generator=generator)
        sizes = [
            torch.full((answer.shape[1],), piece.floating * (piece.scale / max(answer.shape[1], 1)) ** 0.5)
            for piece, answer, _, _ in self._parts(target, target)
        ]
        return target + (PROBE * noise * torch.cat(sizes)).to(target.device)

    def condensed(self, output: Tensor, target: Tensor) -> Tensor:
        """(N, 2 + 6 · outputs): broken or not; of each output Σ (a − b)², Σ b², Σ ab, Σ a², and places that agree."""
        columns = [broken(output, target)]
        for piece, own, reference, shape in self._parts(output, target):
            known = reference.isfinite()
            a, b = (torch.where(known, each, 0.0).double() for each in (own, reference))
            same, places = _agreement(own, reference, shape, floating=piece.floating)
            sums = [(a - b).square().sum(1), b.square().sum(1), (a * b).sum(1), a.square().sum(1), same, places]
            columns.append(torch.stack([each.float() for each in sums], 1))
        return torch.cat(columns, 1)

    def kept_targets(self, target: Tensor) -> Tensor:
        """None."""
        return target.new_zeros(len(target), 0)

    def mean_loss(self, condensed: Tensor, targets: Tensor) -> float:
        """As `loss`."""
        sums = self._of_pieces(condensed.double().mean(0, keepdim=True)[:, 2:])
        errors = [sums[0, at, _ERROR] / piece.scale for at, piece in enumerate(self.pieces) if piece.floating]
        return float(_bounded(torch.stack(errors)).mean())

    def answered(self, condensed: Tensor) -> Tensor:
        """Those with numbers where the original has them."""
        return condensed[:, :2].isfinite().all(1)

    def scored(self, condensed: Tensor) -> Tensor:
        """Those that are answered."""
        return self.answered(condensed)

    def statistics(self, condensed: Tensor, targets: Tensor) -> Tensor:
        """All but the first two columns."""
        return condensed[:, 2:].double().cpu()

    def value(self, sums: Tensor) -> Tensor:
        """The mean over outputs of 1 − √(Σ ‖a − b‖² / Σ ‖b‖²), at least 0; of integers, the share that agrees."""
        return torch.stack(self._of_each(sums), 1).mean(1)

    def compare(self, before: Tensor, after: Tensor, targets: Tensor) -> Comparison:
        """With the relative error, the cosine and the agreement of each output."""
        sums = self.statistics(after, targets).sum(0, keepdim=True)
        return super().compare(before, after, targets).model_copy(update={"outputs": self.of_outputs(sums)})

    def of_outputs(self, sums: Tensor) -> list[dict[str, Any]]:
        """Of each output, from sums (1, S): how far the answers are from the original's."""
        found = []
        for piece, (error, reference, product, own, same, places) in zip(
            self.pieces, self._of_pieces(sums)[0].tolist(), strict=True
        ):
            of_output: dict[str, Any] = {"output": piece.path or "0"}
            if piece.floating:
                size = (own * reference) ** 0.5
                of_output["relative_error"] = (error / reference) ** 0.5 if reference else float(error > 0)
                of_output["cosine"] = product / size if size else None
            of_output["agreement"] = same / places if places else None
            found.append(of_output)
        return found

    def _of_each(self, sums: Tensor) -> list[Tensor]:
        values = []
        for at, piece in enumerate(self.pieces):
            of_piece = self._of_pieces(sums)[:, at]
            if piece.floating:
                error, reference = of_piece[:, _ERROR], of_piece[:, _REFERENCE]
                none = (error > 0).to(sums.dtype)  # of an original that answers 0 alone
                relative = torch.where(reference > 0, ratio(error, reference).sqrt(), none)
                values.append(1 - relative.clamp_max(1))  # an output that is lost says nothing of the others
            else:
                values.append(ratio(of_piece[:, _SAME], of_piece[:, _PLACES]))
        return values

    def _of_pieces(self, sums: Tensor) -> Tensor:
        """(R, outputs, 6)."""
        return sums.reshape(len(sums), len(self.pieces), _COLUMNS)

    def _parts(self, output: Tensor, target: Tensor) -> list[tuple[Piece, Tensor, Tensor, torch.Size]]:
        """Each piece with what is answered, with the reference, (N, D) both, and with the shape of a sample."""
        if output.shape != target.shape:
            raise ModelFailed(
                f"The model answers {output.shape[1]:,} numbers a sample, where the original answers "
                f"{target.shape[1]:,}. Outputs are compared one by one: they must have the same shapes."
            )
        shapes = self.shapes[output.shape[1]]
        sizes = [shape.numel() for shape in shapes]
        return list(zip(self.pieces, torch.split(output, sizes, 1), torch.split(target, sizes, 1), shapes, strict=True))


def _bounded(errors: Tensor) -> Tensor:
    """e up to 1, and 1 + log e above."""
    return torch.where(errors > 1, 1 + errors.clamp_min(1).log(), errors)


def _listed(shapes: list[torch.Size]) -> str:
    return shortened([str(tuple(shape)) for shape in shapes], 8)


def _agreement(own: Tensor, reference: Tensor, shape: torch.Size, *, floating: bool) -> tuple[Tensor, Tensor]:
    """In how many places of each sample both mean the same, and how many there are: (N,) each.

    A place is where the largest of several numbers says what is meant: along the last dimension of (K,) and (T, K), the
    first of (K, H, W). Integers mean what they are.
    """
    samples = len(own)
    if not floating:
        same = own == reference
        return same.sum(1), torch.full_like(same[:, 0], same.shape[1], dtype=torch.float32)
    dim = 1 if len(shape) >= 3 else len(shape)
    if not shape or shape[dim - 1] < 2:
        zero = torch.zeros(samples, device=own.device)
        return zero, zero
    first, second = (each.reshape(samples, *shape).argmax(dim).reshape(samples, -1) for each in (own, reference))
    same = first == second
    return same.sum(1), torch.full((samples,), float(same.shape[1]), device=own.device)


def pieces_of(two: Any, three: Any, main: str | None = None) -> tuple[list[Piece], list[str]]:
    """What can be compared of a model's answers to two and to three samples, and what cannot, by path.

    Scales are those of the first answer.

    Args:
        main: an output that is left to a task of its own.
    """
    pieces, left_out = [], []
    later = dict(named_outputs(three))
    for place, (path, output) in enumerate(named_outputs(two)):
        if path == main:
            continue
        other = later.get(path)
        grown = [] if other is None or other.dim() != output.dim() else _grown(output, other)
        if len(grown) == 1 and output.numel():
            dim = grown[0]
            pieces.append(Piece(path, dim, output.is_floating_point() or output.is_complex(), place=place))
        else:
            left_out.append(path)
    return scaled(pieces, [two]), left_out


def scaled(pieces: Sequence[Piece], answers: Iterable[Any]) -> list[Piece]:
    """The pieces with the scales of some answers; 1 of integers, and where all numbers are 0.

    Raises:
        ModelFailed: no number is finite, so that nothing can be compared.
    """
    squares, samples, finite = [0.0] * len(pieces), 0, not any(piece.floating for piece in pieces)
    for answer in answers:
        outputs = dict(named_outputs(answer))
        for at, piece in enumerate(pieces):
            output = outputs[piece.path]
            if piece.floating:
                known = output[output.isfinite()]
                squares[at] += float(known.abs().double().square().sum())
                finite = finite or known.numel() > 0
        samples += outputs[pieces[0].path].shape[pieces[0].batch_dim] if pieces else 0
    if not finite:
        raise ModelFailed(
            "The model answers no finite number, so that nothing can be compared with its own answers. Look for "
            "NaN and infinity among its weights, and whether the data must be scaled (`preprocess`)."
        )
    return [replace(piece, scale=each / samples if each else 1.0) for piece, each in zip(pieces, squares, strict=True)]


def _grown(two: Tensor, three: Tensor) -> list[int]:
    """The dimensions that have an entry for each sample."""
    sizes = zip(two.shape, three.shape, strict=True)
    return [dim for dim, (few, many) in enumerate(sizes) if few != many]


class Embedding(SummedScore):
    """The cosine to the original's embedding, and which neighbours stay the same."""

    name = "embedding"
    metric = "cosine"
    wanted = "embeddings (N, D)"
    unanswered = "left out of all scores"
    softens = False
    has_references = True

    def labels(self, stored: StoredLabels) -> Labels:
        """None are needed."""
        notes = ["Labels were left out: task=embedding learns the original's own."] if stored.arrays else []
        return Labels(stored.without(), notes=notes)

    def takes(self, output: Tensor) -> bool:
        """(N, D)."""
        return output.dim() == 2 and output.shape[1] >= 2

    def advice(self, output: Tensor) -> str:
        """The task that fits."""
        return " Outputs of any shape are task=match."

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """(1/N) Σ_i ‖a_i − b_i‖² / ‖b_i‖² = r² − 2 r cos + 1, r the ratio of lengths: direction and length are held.

        What is shorter than a thirtieth of the others has hardly a direction, and is divided by that.
        """
        squares = target.square().sum(1)
        squares = torch.maximum(squares, squares.mean() / 1000)
        return ((output - target).square().sum(1) / torch.where(squares > 0, squares, 1.0)).mean()

    def probed(self, target: Tensor, generator: torch.Generator) -> Tensor:
        """With noise beside the numbers of each sample, by its length."""
        noise = torch.randn(target.shape, generator=generator).to(target)
        return target + PROBE * noise * target.square().mean(1, keepdim=True).sqrt()

    def mean_loss(self, condensed: Tensor, targets: Tensor) -> float:
        """As `loss`."""
        return float(self.loss(condensed, targets))

    def answered(self, condensed: Tensor) -> Tensor:
        """Those of finite numbers alone."""
        return condensed.isfinite().all(1)

    def scored(self, condensed: Tensor) -> Tensor:
        """Those that are answered."""
        return self.answered(condensed)

    def statistics(self, condensed: Tensor, targets: Tensor) -> Tensor:
        """(N, 2): the cosine, and 1. Of an original that answers 0 it is 1 where that is kept, else 0."""
        own, reference = condensed.double(), targets.double()
        size = own.norm(dim=1) * reference.norm(dim=1)
        cosine = (own * reference).sum(1) / size.clamp_min(1e-300)
        cosine = torch.where(size > 0, cosine.clamp(-1, 1), (own == reference).all(1).double())
        return torch.stack([cosine, torch.ones_like(cosine)], 1).cpu()

    def value(self, sums: Tensor) -> Tensor:
        """The mean cosine."""
        return sums[:, 0] / sums[:, 1]

    def beside(self, condensed: Tensor, targets: Tensor) -> dict[str, float]:
        """The share of each sample's nearest neighbours, by cosine, that it has in the original too."""
        count = min(len(condensed), _COMPARED)
        most = min(_NEIGHBOURS, count - 1)
        if most < 1:
            return {}
        near = [_nearest(each[:count], most) for each in (condensed, targets)]
        shared = (near[0][:, :, None] == near[1][:, None, :]).any(2)
        return {"neighbour_overlap": float(shared.double().mean())}


def _nearest(vectors: Tensor, most: int) -> Tensor:
    """The indices of each one's nearest others by cosine, (N, most)."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    return (unit @ unit.T).fill_diagonal_(-2.0).topk(most, dim=1).indices
