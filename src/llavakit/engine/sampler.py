"""Drawing the next token of every sequence in one vectorised pass."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from llavakit.engine.transfer import to_device
from llavakit.values import SamplingParams

NEVER = float("-inf")


@dataclass(slots=True)
class Draw:
    """How one sequence's tokens are sampled; lives as long as the sequence.

    Its random numbers are its own, so that the answer to a seed does not depend on what
    else is in the batch.
    """

    params: SamplingParams
    numbers: random.Random = field(init=False)
    biases: dict[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = random.Random(self.params.seed)
        self.biases = dict(self.params.logit_bias)

    @property
    def penalises(self) -> bool:
        """Whether the tokens so far change what is sampled next."""
        params = self.params
        return bool(
            params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        )


class Seen(NamedTuple):
    """The tokens so far of a sequence whose next one depends on them."""

    prompt: Sequence[int]
    answer: Sequence[int]


class Drawn(NamedTuple):
    """A sampled token, with log probabilities if they were asked for: (token, logprob) pairs.

    Attributes:
        finite: False where the scores were NaN, infinite, or minus infinity for every token that
            was allowed. Then the token means nothing.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finite: bool = True


class Drawing:
    """Tokens that are chosen on the device and on their way to the host.

    Args:
        tokens: [N] int64.
        finite: [N] of bool, whether a row's scores were numbers that a token can be sampled from.
        logprobs: [N, vocab], if a row asked for any; may be overwritten afterwards.
        counts: how many alternatives each row asked for.

    Attributes:
        tokens: on the device, for the step that goes on behind them.
    """

    def __init__(
        self,
        tokens: Tensor,
        finite: Tensor,
        logprobs: Tensor | None = None,
        counts: Sequence[int | None] = (),
    ) -> None:
        self.tokens = tokens
        self._counts = counts
        # On the host a negative id marks scores that are not finite: no copy of its own, and the
        # step that is launched ahead goes on with an id that the embedding has.
        ids, self._values = torch.where(finite, tokens, ~tokens), None
        if logprobs is not None:
            others, values = _alternatives(tokens, logprobs, max(count or 0 for count in counts))
            ids, self._values = torch.cat((ids[:, None], others), dim=-1), _to_host(values)
        self._ids = _to_host(ids)
        self._copied: torch.cuda.Event | None = None
        if tokens.is_cuda:
            # Behind the copies, which go to pinned memory and block nothing.
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(tokens.device))

    def read(self) -> list[Drawn]:
        """The tokens, on the host; waits for the device."""
        if self._copied is not None:
            self._copied.synchronize()
        if self._values is None:
            return [
                Drawn(token) if token >= 0 else Drawn(-1 - token, finite=False)
                for token in self._ids.tolist()
            ]
        return _with_logprobs(self._ids.tolist(), self._values.tolist(), self._counts)


def _to_host(values: Tensor) -> Tensor:
    """A copy that is under way, or on other devices than CUDA the values themselves."""
    return values.to("cpu", non_blocking=True) if values.is_cuda else values


class Sampler:
    """Draws tokens; the host waits for the device only when it reads them.

    Args:
        forbidden: ids that are never sampled.
        device: where the logits are.
    """

    def __init__(self, forbidden: Sequence[int], device: torch.device) -> None:
        self._forbidden = torch.tensor(list(forbidden), dtype=torch.long, device=device)

    def __call__(
        self,
        logits: Tensor,
        draws: Sequence[Draw],
        seen: Sequence[Seen | None] = (),
        allowed: Tensor | None = None,
    ) -> list[Drawn]:
        """One token for each row, on the host (see :meth:`launch`)."""
        return self.launch(logits, draws, seen, allowed).read()

    def launch(
        self,
        logits: Tensor,
        draws: Sequence[Draw],
        seen: Sequence[Seen | None] = (),
        allowed: Tensor | None = None,
    ) -> Drawing:
        """One token for each row; waits for nothing.

        The order is vLLM's, but for the grammar, which has the last word: biases, the repetition
        penalty, the two additive penalties, the temperature, and what cuts the distribution.

        Args:
            logits: [N, vocab] in fp32; changed in place.
            draws: how each row is sampled.
            seen: for rows that penalise, the tokens so far; empty if there is no such row.
            allowed: [N, vocab] of bool, what a grammar allows; rows without one are all True.
        """
        logits.index_fill_(-1, self._forbidden, NEVER)
        counts = [draw.params.logprobs for draw in draws]
        # As in the OpenAI API, log probabilities are the model's, before any of its settings.
        asked = counts.count(None) < len(counts)
        logprobs = torch.log_softmax(logits, dim=-1) if asked else None
        biases = [draw.biases for draw in draws]
        if any(biases):
            _add(logits, biases)
        # The repetition penalty makes finite numbers of infinite ones.
        finite = _finite(logits.amax(dim=-1)) if seen else None
        if seen:
            _penalise(logits, draws, seen)
        if allowed is not None:
            logits.masked_fill_(~allowed, NEVER)
        tokens, best = _choose(logits, draws)
        # The largest is NaN if any is, and minus infinity only if all are.
        finite = _finite(best) if finite is None else finite & _finite(best)
        return Drawing(tokens, finite, logprobs, counts)


def _finite(scores: Tensor) -> Tensor:
    """``torch.isfinite`` in two operations instead of four: every one has its price."""
    difference = scores - scores  # NaN of infinity, and of NaN
    return difference == difference


def _penalise(logits: Tensor, draws: Sequence[Draw], seen: Sequence[Seen | None]) -> None:
    """Apply the penalties of all rows, [N, vocab], in place."""
    amounts: list[dict[int, float]] = [{} for _ in draws]
    for row, (draw, tokens) in enumerate(zip(draws, seen, strict=True)):
        if tokens is None:
            continue
        params = draw.params
        if params.repetition_penalty != 1.0:
            _divide(logits[row], {*tokens.prompt, *tokens.answer}, params.repetition_penalty)
        if params.presence_penalty or params.frequency_penalty:
            amounts[row] = {
                token: -(params.presence_penalty + params.frequency_penalty * count)
                for token, count in Counter(tokens.answer).items()
            }
    _add(logits, amounts)


def _add(logits: Tensor, amounts: Sequence[Mapping[int, float]]) -> None:
    """Add to the logits of some tokens of each row, [N, vocab], in place."""
    places = [(row, token) for row, of_row in enumerate(amounts) for token in of_row]
    if not places:
        return
    values = [amount for of_row in amounts for amount in of_row.values()]
    rows, tokens = to_device(torch.tensor(places).T.contiguous(), logits.device)
    # No place comes twice, so that nothing has to be accumulated.
    logits[rows, tokens] += to_device(torch.tensor(values, dtype=logits.dtype), logits.device)


def _divide(scores: Tensor, tokens: Iterable[int], penalty: float) -> None:
    """Keskar et al. 2019 (CTRL): positive scores are divided, negative ones multiplied."""
    ids = to_device(torch.tensor(sorted(tokens), dtype=torch.long), scores.device)
    old = scores[ids]
    most = torch.finfo(scores.dtype).max
    # What is never sampled stays so; everything else stays finite, or a row would have no best.
    new = torch.where(old > 0, old / penalty, old * penalty).clamp(-most, most)
    scores[ids] = torch.where(old == NEVER, old, new)


def _choose(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """A token and the largest score of each row, both [N], on the logits' device."""
    best, greedy = logits.max(dim=-1)
    rows = [row for row, draw in enumerate(draws) if draw.params.temperature > 0]
    if rows:
        index = _index(rows, logits)
        sampled = logits[index]
        if sampled.device.type == "mps":
            sampled = sampled.cpu()  # MPS has no fp64, in which distributions are inverted
        greedy[index] = _sample(sampled, [draws[row] for row in rows]).to(greedy.device)
    return greedy, best


def _sample(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Sample rows [N, vocab] by inverting the distribution at each row's own random number."""
    params = [draw.params for draw in draws]
    numbers, settings = _settings(draws, logits)
    temperatures, min_p, _, _ = settings
    # Softmax shifts by the largest score, so that a tiny temperature cannot overflow.
    logits = logits - logits.max(dim=-1, keepdim=True).values
    # Neither rounded to 0 nor to infinity, over which a token that is never sampled would be NaN.
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
    # A row of NaN has no token, and its request fails (``Drawn.finite``). Until then it has some
    # id of the vocabulary: one beyond it would end the whole device, with all other rows.
    place = place.clamp_max(probabilities.shape[-1] - 1)
    return (place if order is None else order.gather(-1, place))[:, 0]


def _index(rows: Sequence[int], like: Tensor) -> Tensor:
    return to_device(torch.tensor(rows), like.device)


def _alternatives(tokens: Tensor, logprobs: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Ids of the likeliest, [N, most], and log probabilities, the sampled token's before theirs."""
    values, ids = logprobs.topk(most)
    return ids, torch.cat((logprobs.gather(-1, tokens[:, None]), values), dim=-1)


def _with_logprobs(
    ids: Sequence[Sequence[int]],
    values: Sequence[Sequence[float]],
    counts: Sequence[int | None],
) -> list[Drawn]:
    """The sampled tokens, each with as many log probabilities as were asked for."""
    sampled = []
    for count, places, scores in zip(counts, ids, values, strict=True):
        # A grammar may have hidden the token whose score is NaN; all log probabilities are then.
        if places[0] < 0 or (count is not None and math.isnan(scores[0])):
            sampled.append(Drawn(max(places[0], -1 - places[0]), finite=False))
            continue
        top = tuple(zip(places[1:], scores[1:], strict=True))
        sampled.append(
            Drawn(places[0]) if count is None else Drawn(places[0], scores[0], top[:count])
        )
    return sampled
