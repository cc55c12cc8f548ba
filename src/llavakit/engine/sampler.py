"""Drawing the next token of every sequence in one vectorised pass."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llavakit.engine.transfer import to_device
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
    """Draws tokens. The host waits for the device once: for the tokens themselves.

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
        logits.index_fill_(-1, self._forbidden, NEVER)
        asked = [draw.params.logprobs is not None for draw in draws]
        # As in the OpenAI API, log probabilities are the model's, before any of its settings.
        logprobs = torch.log_softmax(logits, dim=-1) if any(asked) else None
        if allowed is not None:
            logits.masked_fill_(~allowed, NEVER)
        for row, (draw, tokens) in enumerate(zip(draws, seen, strict=True)):
            if tokens is not None and draw.params.repetition_penalty != 1.0:
                _penalise(logits[row], tokens, draw.params.repetition_penalty)
        chosen = _choose(logits, draws)
        if logprobs is None:
            return [Drawn(token) for token in chosen.tolist()]
        return _with_logprobs(chosen, logprobs, [draw.params.logprobs for draw in draws])


def _penalise(scores: Tensor, tokens: Sequence[int], penalty: float) -> None:
    """Keskar et al. 2019 (CTRL): positive scores are divided, negative ones multiplied."""
    ids = to_device(torch.tensor(sorted(set(tokens)), dtype=torch.long), scores.device)
    old = scores[ids]
    most = torch.finfo(scores.dtype).max
    # What is never drawn stays so; everything else stays finite, or a row would have no best.
    new = torch.where(old > 0, old / penalty, old * penalty).clamp(-most, most)
    scores[ids] = torch.where(old == NEVER, old, new)


def _choose(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """A token for each row, [N], on the logits' device."""
    greedy = logits.argmax(dim=-1)
    rows = [row for row, draw in enumerate(draws) if draw.params.temperature > 0]
    if rows:
        index = _index(rows, logits)
        sampled = logits[index]
        if sampled.device.type == "mps":
            sampled = sampled.cpu()  # MPS has no fp64, in which distributions are inverted
        greedy[index] = _sample(sampled, [draws[row] for row in rows]).to(greedy.device)
    return greedy


def _sample(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Sample rows [N, vocab] by inverting the distribution at each row's own random number."""
    params = [draw.params for draw in draws]
    numbers, settings = _settings(draws, logits)
    temperatures, min_p, _, _ = settings
    # Softmax shifts by the largest score, so that a tiny temperature cannot overflow.
    logits = logits - logits.max(dim=-1, keepdim=True).values
    # Neither rounded to 0 nor to infinity, over which a token that is never drawn would be NaN.
    kind = torch.finfo(logits.dtype)
    temperatures = temperatures.clamp(kind.tiny, kind.max)
    probabilities = torch.softmax(logits / temperatures, dim=-1)
    if any(p.min_p > 0 for p in params):
        most = probabilities.max(dim=-1, keepdim=True).values
        probabilities.masked_fill_(probabilities < min_p * most, 0)
    place = torch.empty(len(draws), dtype=torch.long, device=logits.device)
    # Rows that are cut are sorted and the others are not: sorting a row because of its
    # neighbours would turn the same random number into another token.
    for cut in (False, True):
        rows = [row for row, p in enumerate(params) if (p.top_k > 0 or p.top_p < 1) == cut]
        if not rows:
            continue
        index = _index(rows, logits)
        of_rows, order = probabilities[index], None
        if cut:
            of_rows, order = _cut(of_rows, settings[2, index], settings[3, index])
        place[index] = _invert(of_rows, numbers[index], order)
    return place


def _settings(draws: Sequence[Draw], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Random numbers [N, 1] in fp64; temperature, min p, top k and top p, [4, N, 1] as logits."""
    every = logits.shape[-1]
    rows = [
        (d.numbers.random(), p.temperature, p.min_p, min(p.top_k or every, every), p.top_p)
        for d in draws
        for p in (d.params,)
    ]
    # One copy for all: every one has its price.
    columns = to_device(torch.tensor(rows, dtype=torch.float64), logits.device).T[..., None]
    return columns[0], columns[1:].to(logits.dtype)


def _cut(probabilities: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Rows sorted and cut to their top k and top p [N, 1], and the token at each place."""
    probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(probabilities.shape[-1], device=probabilities.device)
    probabilities = probabilities * (rank < top_k)
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    # A token stays while the mass before it is below top_p: the first one always does.
    before = probabilities.cumsum(dim=-1) - probabilities
    return probabilities * (before < top_p), order


def _invert(probabilities: Tensor, numbers: Tensor, order: Tensor | None) -> Tensor:
    """The token whose share of the mass each row's number in [0, 1) falls into."""
    mass = probabilities.double().cumsum(dim=-1)
    total = mass[:, -1:].contiguous()
    place = torch.searchsorted(mass, numbers * total, right=True)
    # A product that is rounded up to the total must not fall behind the last possible token.
    place = torch.minimum(place, torch.searchsorted(mass, total))
    # A row of NaN has no token. It gets some id of the vocabulary, because an id beyond it would
    # end the whole device, with all other rows.
    place = place.clamp_max(probabilities.shape[-1] - 1)
    return (place if order is None else order.gather(-1, place))[:, 0]


def _index(rows: Sequence[int], like: Tensor) -> Tensor:
    return to_device(torch.tensor(rows), like.device)


def _with_logprobs(tokens: Tensor, logprobs: Tensor, counts: Sequence[int | None]) -> list[Drawn]:
    """The drawn tokens, each with as many log probabilities as were asked for."""
    values, ids = logprobs.topk(max(count or 0 for count in counts))
    values = torch.cat((logprobs.gather(-1, tokens[:, None]), values), dim=-1)
    ids = torch.cat((tokens[:, None], ids), dim=-1)
    drawn = []
    for count, places, scores in zip(counts, ids.tolist(), values.tolist(), strict=True):
        top = tuple(zip(places[1:], scores[1:], strict=True))
        drawn.append(
            Drawn(places[0]) if count is None else Drawn(places[0], scores[0], top[:count])
        )
    return drawn
