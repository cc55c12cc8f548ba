"""Muon, and the optimizer that it is half of."""

from __future__ import annotations

import pytest
import torch

from examples.demo_model.muon import MuonAdamW, orthogonalise


def test_an_update_is_nearly_orthogonal():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (3, 40, 16)):
        singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert singular.min() > 0.5 and singular.max() < 1.3


def test_a_matrix_is_learnt():
    torch.manual_seed(0)
    target, weight = torch.randn(8, 8), torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = MuonAdamW([("weight", weight)], matrix_rate=0.1, other_rate=0.0, weight_decay=0.0)
    for _ in range(150):
        loss = (weight - target).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05


def test_matrices_are_torch_s_muon_in_full_precision():
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.eye(6, 4)) for _ in range(2))
    optimizers = (
        MuonAdamW([("weight", mine)], matrix_rate=0.02, other_rate=0.0, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True),
    )
    for step in range(8):
        gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    # Theirs orthogonalises in bfloat16.
    torch.testing.assert_close(mine, theirs, atol=4e-3, rtol=0)


@pytest.mark.parametrize("name", ["norm.bias", "embed_tokens.weight", "heads.head.weight"])
def test_everything_else_is_torch_s_adamw(name: str):
    shape = (15,) if "bias" in name else (5, 3)
    mine, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizers = (
        MuonAdamW([(name, mine)], matrix_rate=9.0, other_rate=0.01),
        torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0),
    )
    for step in range(8):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_position_embeddings_learn_ten_times_as_fast():
    named = {name: torch.nn.Parameter(torch.ones(4, 4)) for name in ("x.position_embedding", "b")}
    named["b"] = torch.nn.Parameter(torch.ones(4))
    optimizer = MuonAdamW(named.items(), matrix_rate=0.0, other_rate=0.001)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(named["x.position_embedding"])] == 10 * rates[id(named["b"])]


def test_state_goes_on_where_it_was_left():
    def run(stop):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        optimizer = MuonAdamW(net.named_parameters(), matrix_rate=0.01, other_rate=0.01)
        for step in range(6):
            if step == stop:
                state = optimizer.state_dict()
                optimizer = MuonAdamW(net.named_parameters(), matrix_rate=0.01, other_rate=0.01)
                optimizer.load_state_dict(state)
            net(torch.ones(2, 4) * step).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(run(stop=None), run(stop=3))
