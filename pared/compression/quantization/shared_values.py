"""Lets many weights share few values by k-means codebooks, and keeps them shared while they are trained.

Han, Mao and Dally 2016, Deep Compression (arXiv:1510.00149), section 3. A packed file then needs a few bits a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pared.compression.names import matching
from pared.compression.pruning.weights import Masks
from pared.errors import ModelFailed, NothingToPrune

_ROUNDS = 10_000  # k-means of weights settles in some hundreds; a few microseconds each


class SharedValues:
    """Which weights share a value, and the values: what `train.fit` holds through every step.

    `codes`: tensor name -> int16 of its shape; equal codes share a value, and -1 is a pruned weight, which stays zero.
    `codebooks`: tensor name -> (values,), as they were when last applied.
    """

    def __init__(self, codes: Mapping[str, Tensor], codebooks: Mapping[str, Tensor]) -> None:
        self.codes = dict(codes)
        self.codebooks = dict(codebooks)
        self._clusters = {name: _Clusters(code, len(codebooks[name])) for name, code in self.codes.items()}

    def apply(self, module: nn.Module) -> None:
        """Give all weights of a cluster its mean, exactly, and pruned weights zero; what is so stays as it is.

        The module is the truth, not the codebook: an epoch may have been taken back.
        """
        with torch.no_grad():
            for name, parameter in self._of(module):
                means = self._clusters[name].means(parameter)
                parameter.copy_(self._clusters[name].spread(means, parameter))
                self.codebooks[name] = means

    def mask_gradients(self, module: nn.Module) -> None:
        """Give all weights of a cluster the mean of their gradients, and pruned weights none.

        Equal gradients keep equal weights equal through momentum, weight decay and Adam. Their mean is the gradient
        projected onto the weights that share values, so any learning rate that suits the weights by themselves suits
        them here; their sum (the gradient by the value itself) would be steeper by the size of the cluster.
        """
        with torch.no_grad():
            for name, parameter in self._of(module):
                if parameter.grad is not None:
                    clusters = self._clusters[name]
                    parameter.grad.copy_(clusters.spread(clusters.means(parameter.grad), parameter.grad))

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        codes = {f"codes/{name}": codes for name, codes in self.codes.items()}
        return codes | {f"codebooks/{name}": codebook for name, codebook in self.codebooks.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> SharedValues:
        """Shared values from a checkpoint."""
        parts: dict[str, dict[str, Tensor]] = {"codes": {}, "codebooks": {}}
        for key, tensor in state.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        return cls(**parts)

    def _of(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in module.named_parameters() if name in self.codes)


def share_values(
    module: nn.Module,
    bits: int,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    kept: Masks | None = None,
    biases: bool = False,
) -> SharedValues:
    """Cluster the weights of each tensor around at most 2^bits values; `apply` then makes the module so.

    A tensor's clusters are those of k-means, started evenly between its smallest and its largest weight. Pruned weights
    are not among them and stay zero: those that the masks say, and in tensors without a mask those that are zero.

    Args:
        bits: 1 to 8.
        include: patterns of layer names.
        exclude: such patterns, stronger than `include`.
        kept: the masks of a pruned module.
        biases: also those of at least 2^bits values.

    Raises:
        NothingToPrune: no layer with weights matches.
        ModelFailed: a weight is not a finite number.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, not {bits}")
    codes, codebooks = {}, {}
    masks = {} if kept is None else kept.kept
    for name, parameter in matching(module, include, exclude).items():
        a_bias = name.rpartition(".")[2] == "bias" and parameter.numel() >= 1 << bits
        if not parameter.is_floating_point() or not (parameter.dim() >= 2 or (biases and a_bias)):
            continue
        weight = parameter.detach().cpu()
        if not bool(weight.isfinite().all()):
            raise ModelFailed(f"The weights of {name} are not all finite numbers: they cannot be clustered.")
        live = masks[name].cpu() if name in masks else weight != 0
        code = torch.full(weight.shape, -1, dtype=torch.int16)
        code[live] = torch.from_numpy(cluster(weight[live].double().numpy(), 1 << bits)).to(torch.int16)
        codes[name] = code.to(parameter.device)
        count = int(code.max()) + 1 if code.numel() else 0
        codebooks[name] = _Clusters(codes[name], count).means(parameter.detach())
    if not codes:
        raise NothingToPrune(f"No layer with weights matches include {list(include)} and exclude {list(exclude)}.")
    return SharedValues(codes, codebooks)


def cluster(values: NDArray[np.float64], most: int) -> NDArray[Any]:
    """The cluster of each value: k-means in one dimension by Lloyd's algorithm, exact and without chance.

    Sorted values make clusters runs, and prefix sums their means: a round costs a search for each border, not a look at
    each value. Centroids start evenly from the least to the greatest value. Clusters are numbered in the order of their
    values, and none is empty. A value midway between two centroids goes to the lower.

    Args:
        values: (n,), finite.
        most: how many clusters at most.
    """
    ordered, numbers = np.unique(values, return_inverse=True)
    if len(ordered) <= most:
        return numbers
    counts = np.concatenate([[0], np.cumsum(np.bincount(numbers))])
    sums = np.concatenate([[0.0], np.cumsum(np.bincount(numbers) * ordered)])
    centroids = np.linspace(ordered[0], ordered[-1], most)
    borders = np.array([], dtype=np.intp)
    for _ in range(_ROUNDS):
        new_borders = np.searchsorted(ordered, (centroids[:-1] + centroids[1:]) / 2, side="right")
        if np.array_equal(new_borders, borders):
            break
        borders = new_borders
        ends = np.concatenate([[0], borders, [len(ordered)]])
        sizes = np.diff(counts[ends])
        centroids = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), centroids)
    _, codes = np.unique(np.searchsorted(borders, numbers, side="right"), return_inverse=True)
    return codes


class _Clusters:
    """The clusters of one tensor: places of its live weights, in the order of its dimensions, and their codes."""

    def __init__(self, codes: Tensor, count: int) -> None:
        flat = codes.flatten()
        self._places = (flat >= 0).nonzero().squeeze(1)
        self._codes = flat[self._places].long()
        self._sizes = torch.bincount(self._codes, minlength=count)

    def means(self, tensor: Tensor) -> Tensor:
        """The mean over each cluster, (clusters,). In float64, where the sum of equal float32 is exact."""
        live = tensor.flatten()[self._places].double()
        sums = torch.zeros(len(self._sizes), dtype=torch.float64, device=tensor.device)
        return (sums.index_add_(0, self._codes, live) / self._sizes.clamp(min=1)).to(tensor.dtype)

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """A tensor of this shape with the value of its cluster at every live place, and zero elsewhere."""
        flat = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
        flat[self._places] = values[self._codes]
        return flat.reshape(like.shape)
