"""Late interaction of a batch, and the loss that makes a query's own page the best of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llavakit.model.retrieval import PROJECTION


class Retriever(nn.Module):
    """An HF LLaVA model with adapters, and the projection of its hidden states.

    Args:
        model: as :func:`~llavakit.training.trainable.prepare` gives it.
        temperature: scores are divided by it.
    """

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.config = model.config

    def forward(
        self, queries: dict[str, Tensor], pages: dict[str, Tensor], positive: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss of a batch (see :func:`contrastive_loss`)."""
        scores = maxsim(*self.embed(queries), *self.embed(pages))
        return {"loss": contrastive_loss(scores / self.temperature, positive), "scores": scores}

    def embed(self, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Vectors of rows, [B, L, dimensions], and which of them count, [B, L]."""
        rows = dict(rows)
        wanted = rows.pop("wanted")
        base = self.model.get_base_model()
        hidden = base.model(**rows, use_cache=False, return_dict=True).last_hidden_state
        projection = getattr(base, PROJECTION)
        return F.normalize(projection(hidden.float()), dim=-1), wanted

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Compute twice rather than keep all activations."""
        self.model.gradient_checkpointing_enable(**options)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations."""
        self.model.gradient_checkpointing_disable()


def maxsim(queries: Tensor, asked: Tensor, pages: Tensor, shown: Tensor) -> Tensor:
    """Return the mean, over a query's vectors, of the best product with one of a page's, [Q, P].

    Args:
        queries, pages: [Q, M, dimensions] and [P, N, dimensions].
        asked, shown: [Q, M] and [P, N], which of them count.
    """
    products = torch.einsum("qmd,pnd->qpmn", queries, pages)
    products = products.masked_fill(~shown[None, :, None, :], float("-inf"))
    best = products.amax(dim=-1).masked_fill(~asked[:, None, :], 0.0)
    return best.sum(dim=-1) / asked.sum(dim=-1)[:, None]


def contrastive_loss(scores: Tensor, positive: Tensor) -> Tensor:
    """Return the mean of ``-log`` of the share of each query's own pages among all.

    InfoNCE over the pages of the batch (https://arxiv.org/abs/1807.03748). All pages that answer a
    query count as its own, so that no page is pushed away from a query that it answers.

    Args:
        scores: [Q, P].
        positive: [Q, P], bool; at least one in each row.
    """
    own = scores.masked_fill(~positive, float("-inf"))
    return (scores.logsumexp(dim=-1) - own.logsumexp(dim=-1)).mean()
