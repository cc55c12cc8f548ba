import torch

from llavakit.training.muon import Muon, MuonAdamW, orthogonalise


def test_an_update_is_nearly_orthogonal():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (3, 40, 16)):
        singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert singular.min() > 0.5 and singular.max() < 1.3


def test_a_matrix_is_learnt():
    torch.manual_seed(0)
    target, weight = torch.randn(8, 8), torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
    for _ in range(150):
        loss = (weight - target).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05


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
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(run(stop=None), run(stop=3))
