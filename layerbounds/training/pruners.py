"""Masks of weights and of activations, by magnitude, at any share of what is to be pruned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerbounds.problems.patterns.structure import Structure


class WeightMask(nn.Module):
    """Which weights of a layer are kept: in every group of a pattern the units of largest magnitude.

    Each output channel has a mask of its own, so that the result is allowed in the problem of the same pattern: k
    weights anywhere, N of every M, k/S blocks of S. At a share below 1 groups keep more than that.

    Parameters
    ----------
    structure : Structure
        Units, groups and capacities of an output channel.
    rows : int
        Output channels.

    Attributes
    ----------
    kept : Tensor of bool, shape (rows, n)
    """

    kept: Tensor
    unit: Tensor
    group: Tensor
    size: Tensor
    capacity: Tensor
    first: Tensor

    def __init__(self, structure: Structure, rows: int) -> None:
        super().__init__()
        group = torch.from_numpy(structure.group)
        size = torch.bincount(group, minlength=len(structure.capacity))
        self.register_buffer("kept", torch.ones(rows, len(structure.unit), dtype=torch.bool))
        for name, value in {
            "unit": torch.from_numpy(structure.unit),
            "group": group,
            "size": size,
            "capacity": torch.minimum(torch.from_numpy(structure.capacity), size),
            "first": torch.cumsum(size, 0) - size,
        }.items():
            self.register_buffer(name, value, persistent=False)

    @torch.no_grad()
    def update(self, matrix: Tensor, share: float, ties: Tensor | None = None) -> None:
        """Choose anew what is kept.

        Parameters
        ----------
        matrix : Tensor of shape (rows, n)
            Units of several weights count with the sum of their magnitudes.
        share : float
            0 keeps everything, 1 what the pattern allows.
        ties : Tensor of shape (rows, n), optional
            What decides between units that are equal in ``matrix``; where they are equal here too, the first is kept.
        """
        rows, units = len(matrix), len(self.group)
        order = torch.arange(units, device=matrix.device).expand(rows, -1)
        # Stable sorts, the least important first: at last each group is a slice, its largest units first.
        for values in (matrix,) if ties is None else (ties, matrix):
            score = torch.zeros(rows, units, dtype=values.dtype, device=values.device)
            score.index_add_(1, self.unit, values.abs())
            order = order.gather(1, torch.argsort(score.gather(1, order), dim=1, descending=True, stable=True))
        order = order.gather(1, torch.argsort(self.group[order], dim=1, stable=True))
        group = torch.sort(self.group).values
        most = self.size - torch.round((self.size - self.capacity) * share).long()
        rank = torch.arange(units, device=matrix.device) - self.first[group]
        chosen = (rank < most[group]).expand(rows, -1)
        kept = torch.zeros(rows, units, dtype=torch.bool, device=matrix.device).scatter_(1, order, chosen)
        self.kept.copy_(kept[:, self.unit])

    def forward(self, matrix: Tensor) -> Tensor:
        """The matrix with zeros; pruned weights get no gradient."""
        return torch.where(self.kept, matrix, torch.zeros_like(matrix))


class ActivationMask(nn.Module):
    """Which of a layer's input features are kept, the same for all samples: those of largest mean magnitude.

    The mean is that over the samples of the last batches, a window, as in the released code of Zhang et al.
    (arXiv 2110.08271).

    Parameters
    ----------
    shape : tuple of int
        Of the inputs of one sample.
    density : float
        Kept fraction.
    window : int
        Batches.

    Attributes
    ----------
    kept : Tensor of bool, shape ``shape``
    """

    kept: Tensor
    recent: Tensor
    seen: Tensor

    def __init__(self, shape: tuple[int, ...], density: float, window: int) -> None:
        super().__init__()
        self.density = density
        self.register_buffer("kept", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("recent", torch.zeros(window, *shape))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def watch(self, x: Tensor) -> None:
        """Take the inputs of a batch into the window."""
        self.recent[int(self.seen) % len(self.recent)] = x.detach().abs().mean(dim=0)
        self.seen += 1

    @torch.no_grad()
    def update(self, share: float) -> None:
        """Choose anew what is kept; before the first batch everything is."""
        if not self.seen:
            return
        mean = self.recent[: int(self.seen)].mean(dim=0).flatten()
        most = len(mean) - round((len(mean) - self.count) * share)
        order = torch.argsort(mean, descending=True, stable=True)
        kept = torch.zeros_like(mean, dtype=torch.bool)
        kept[order[:most]] = True
        self.kept.copy_(kept.reshape(self.kept.shape))

    @property
    def count(self) -> int:
        """How many features are kept in the end: ⌊density·features⌋, at least one."""
        return max(1, int(self.density * self.kept.numel() + 1e-9))

    def forward(self, x: Tensor) -> Tensor:
        """The inputs with zeros."""
        return torch.where(self.kept, x, torch.zeros_like(x))
