"""Which weighted sum of several values best tells what is altered: learnt from parts whose alterations are known.

Every form on a grid of weights is a candidate. For each, values of altered and of unaltered places (or parts) are
counted in bins; counts add up over batches and processes, and the average precision of every form follows from them.
Parts are altered in several kinds of ways. The form of the highest geometric mean over the kinds is kept, of equal ones
that with fewer ingredients.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

BINS = 2048
LOWEST, HIGHEST = -4.0, 9.0  # inverse hyperbolic sines of -27 and 4,052 spreads: the range of the bins


class Weighing(nn.Module):
    """Σ w_k z_k of K values z, each in spreads over good parts.

    Args:
        values: K.
        kinds: how many kinds of alterations there are.
        exclusive: indices of values of which a form takes one at most.
        given: shares of values, by index, that are not learnt.
        steps: into how many equal shares the weights are divided.

    Attributes:
        weight: w, (K,), of which the sum is 1; equal shares until fitted.
        forms: the candidates, (forms, K).
        evidence: average precision of every form, (kinds, forms); 0 for kinds that have not been tried.
    """

    weight: Tensor
    evidence: Tensor
    forms: Tensor

    def __init__(
        self,
        values: int,
        kinds: int = 1,
        exclusive: Sequence[int] = (),
        given: Mapping[int, int] = MappingProxyType({}),
        steps: int = 4,
    ) -> None:
        super().__init__()
        whole = _shares(values, exclusive, steps)
        chosen = [shares for shares in whole if all(shares[k] == share for k, share in given.items())]
        forms = torch.tensor(chosen, dtype=torch.float32) / steps
        self.register_buffer("forms", forms, persistent=False)
        self.register_buffer("evidence", torch.zeros(kinds, len(forms)))
        self.register_buffer("weight", torch.full((values,), 1 / values))

    def forward(self, values: Tensor) -> Tensor:
        """The weighted sum of values (..., K)."""
        return values @ self.weight

    def empty_sums(self) -> dict[str, Tensor]:
        """Counts of nothing by class (unaltered, altered), form and bin."""
        return {"counts": self.weight.new_zeros(2, len(self.forms), BINS, dtype=torch.float64)}

    def add(self, sums: Mapping[str, Tensor], values: Tensor, altered: Tensor) -> None:
        """Count values (N, K) under every form, in place; `altered` (N,) of bool says which are to be found."""
        scores = torch.asinh(values @ self.forms.T)  # (N, forms)
        bins = ((scores - LOWEST) / (HIGHEST - LOWEST) * BINS).long().clamp_(0, BINS - 1)
        first = torch.arange(len(self.forms), device=bins.device) * BINS
        for index, chosen in enumerate((~altered, altered)):
            places = (bins[chosen] + first).flatten()
            sums["counts"][index].view(-1).add_(torch.bincount(places, minlength=len(self.forms) * BINS))

    def conclude(self, sums: Mapping[str, Tensor], kind: int = 0) -> None:
        """Keep the best form by this kind of alterations and those before; where nothing was altered, equal shares."""
        unaltered, altered = sums["counts"].flip(2).cumsum(dim=2)  # with each bin as threshold, highest first
        precision = altered / (altered + unaltered).clamp_min(1)
        share = altered.diff(dim=1, prepend=altered.new_zeros(len(altered), 1)) / altered[:, -1:].clamp_min(1)
        self.evidence[kind] = (share * precision).sum(dim=1)
        if self.evidence.any():
            self.weight.copy_(self.forms[self.overall().argmax()])  # the first of the highest

    def overall(self) -> Tensor:
        """The geometric mean of every form's average precision over the kinds that were tried, (forms,).

        What is lost of a kind counts by its ratio: kinds that are hard to find are as important as easy ones.
        """
        tried = self.evidence[self.evidence.amax(dim=1) > 0]
        return tried.log().mean(dim=0).exp()

    def said(self, names: Sequence[str], kinds: Sequence[str]) -> str:
        """The weights and the evidence for them, in words."""
        found = 100 * self.overall()
        of_kinds = 100 * self.evidence[:, found.argmax()]
        most = self.forms.amax(dim=0)
        mainly = {name: float(found[self.forms[:, k] == most[k]].max()) for k, name in enumerate(names)}
        return (
            " + ".join(f"{share:g} {name}" for share, name in zip(self.weight.tolist(), names, strict=True) if share)
            + f": average precision on altered parts {float(found.max()):.1f} % ("
            + ", ".join(f"{kind} {float(value):.1f}" for kind, value in zip(kinds, of_kinds, strict=True))
            + "); mainly "
            + ", ".join(f"{name} {value:.1f}" for name, value in mainly.items())
        )


def _shares(values: int, exclusive: Sequence[int], steps: int) -> list[tuple[int, ...]]:
    """All ways to deal out `steps` shares among the values, those with fewer ingredients first."""
    dealt = itertools.product(range(steps + 1), repeat=values)
    whole = [shares for shares in dealt if sum(shares) == steps and sum(shares[k] > 0 for k in exclusive) <= 1]
    return sorted(whole, key=lambda shares: sum(share > 0 for share in shares))
