"""Drawing the next token of every sequence in one vectorised pass."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llavakit.values import SamplingParams

NEVER = float("-inf")


@dataclass(slots=True)
class Draw:
    """How one sequence's tokens are drawn; lives as long as the sequence.

    Its random numbers are its own, so that the answer to a seed does not depend on what
    else is in the batch.
    """

    params: SamplingParams
    numbers: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = random.Random(self.params.seed)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn token, with log probabilities if they were asked for: (token, logprob) pairs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws tokens.

    Args:
        forbidden: ids that are never drawn.
        device: where the logits are.
    """

    def __init__(self, forbidden: Sequence[int], device: torch.device) -> None:
        self._forbidden = torch.tensor(list(forbidden), dtype=torch.long, device=device)

    def __call__(
        self,
        logits: Tensor,
        draws: Sequence[Draw],
        seen: Sequence[Sequence[int] | None],
        allowed: Tensor | None = None,
    ) -> list[Drawn]:
        """One token for each row.

        Args:
            logits: [N, vocab] in fp32; changed in place.
            draws: how each row is drawn.
            seen: for rows with a repetition penalty, the tokens so far.
            allowed: [N, vocab] of bool, what a grammar allows; rows without one are all True.
        """
        logits[:, self._forbidden] = NEVER
        asked = [draw.params.logprobs is not None for draw in draws]
        # As in the OpenAI API, log probabilities are the model's, before any of its settings.
        logprobs = torch.log_softmax(logits, dim=-1) if any(asked) else None
        if allowed is not None:
            logits.masked_fill_(~allowed, NEVER)
        for row, (draw, tokens) in enumerate(zip(draws, seen, strict=True)):
            if tokens is not None and draw.params.repetition_penalty != 1.0:
                _penalise(logits[row], tokens, draw.params.repetition_penalty)
        tokens_drawn = _choose(logits, draws)
        if logprobs is None:
            return [Drawn(token) for token in tokens_drawn]
        return [
            _with_logprobs(token, logprobs[row], draw.params.logprobs)
            for row, (token, draw) in enumerate(zip(tokens_drawn, draws, strict=True))
        ]


def _penalise(scores: Tensor, tokens: Sequence[int], penalty: float) -> None:
    """Keskar et al. 2019 (CTRL): positive scores are divided, negative ones multiplied."""
    ids = torch.tensor(sorted(set(tokens)), dtype=torch.long, device=scores.device)
    old = scores[ids]
    scores[ids] = torch.where(old > 0, old / penalty, old * penalty)


def _choose(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    greedy = logits.argmax(dim=-1)
    rows = [row for row, draw in enumerate(draws) if draw.params.temperature > 0]
    if rows:
        index = torch.tensor(rows, device=logits.device)
        greedy[index] = _sample(logits[index], [draws[row] for row in rows])
    chosen: list[int] = greedy.tolist()
    return chosen


def _sample(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Sample rows [N, vocab] by inverting the distribution at each row's own random number."""
    params = [draw.params for draw in draws]
    # Softmax shifts by the largest score, so that a tiny temperature cannot overflow.
    logits = logits - logits.max(dim=-1, keepdim=True).values
    temperatures = _column([p.temperature for p in params], logits)
    probabilities = torch.softmax(logits / temperatures, dim=-1)
    if any(p.min_p > 0 for p in params):
        most = probabilities.max(dim=-1, keepdim=True).values
        probabilities[probabilities < _column([p.min_p for p in params], logits) * most] = 0
    numbers = _column([draw.numbers.random() for draw in draws], logits.double())
    place = torch.empty(len(draws), dtype=torch.long, device=logits.device)
    # Rows that are cut are sorted and the others are not: sorting a row because of its
    # neighbours would turn the same random number into another token.
    for cut in (False, True):
        rows = [row for row, p in enumerate(params) if (p.top_k > 0 or p.top_p < 1) == cut]
        if not rows:
            continue
        index = torch.tensor(rows, device=logits.device)
        of_rows, order = probabilities[index], None
        if cut:
            of_rows, order = _cut(of_rows, [params[row] for row in rows])
        place[index] = _invert(of_rows, numbers[index], order)
    return place


def _cut(probabilities: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """Rows sorted and cut to their top k and top p, and the token at each place."""
    probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
    vocabulary = probabilities.shape[-1]
    rank = torch.arange(vocabulary, device=probabilities.device)
    probabilities = probabilities * (
        rank < _column([p.top_k or vocabulary for p in params], probabilities)
    )
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    # A token stays while the mass before it is below top_p: the first one always does.
    before = probabilities.cumsum(dim=-1) - probabilities
    return probabilities * (before < _column([p.top_p for p in params], probabilities)), order


def _invert(probabilities: Tensor, numbers: Tensor, order: Tensor | None) -> Tensor:
    """The token whose share of the mass each row's number in [0, 1) falls into."""
    mass = probabilities.double().cumsum(dim=-1)
    total = mass[:, -1:].contiguous()
    place = torch.searchsorted(mass, numbers * total, right=True)
    # A product that is rounded up to the total must not fall behind the last possible token.
    place = torch.minimum(place, torch.searchsorted(mass, total))
    return (place if order is None else order.gather(-1, place))[:, 0]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _with_logprobs(token: int, logprobs: Tensor, count: int | None) -> Drawn:
    if count is None:
        return Drawn(token)
    values, ids = logprobs.topk(count)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Drawn(token, float(logprobs[token]), top)
