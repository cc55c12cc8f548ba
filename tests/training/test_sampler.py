"""The order of examples, for any lengths."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llavakit.training.sampler import ExampleOrder

lengths = st.lists(st.integers(1, 2000).flatmap(lambda n: st.sampled_from([n, -n])), max_size=200)


@given(lengths, st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_every_example_comes_once_an_epoch(
    lengths: list[int], device: int, times: int, grouped: bool, epoch: int
):
    order = ExampleOrder(lengths, step=device * times, device=device, seed=1, grouped=grouped)
    order.set_epoch(epoch)
    seen = list(order)
    assert sorted(seen) == list(range(len(lengths))) and len(order) == len(lengths)
    assert seen == list(order)


@given(lengths, st.integers(1, 4), st.integers(1, 4))
def test_whole_steps_are_of_one_kind(lengths: list[int], device: int, times: int):
    step = device * times
    seen = list(ExampleOrder(lengths, step=step, device=device, seed=1, grouped=True))
    kinds = [lengths[index] > 0 for index in seen]
    whole = kinds.count(True) // step + kinds.count(False) // step
    assert all(len(set(kinds[at * step : (at + 1) * step])) == 1 for at in range(whole))


def test_grouping_saves_padding_and_epochs_differ():
    lengths = [(index * 37) % 500 + 1 for index in range(640)]

    def padded(order: ExampleOrder) -> int:
        seen = [lengths[index] for index in order]
        rows = [seen[at : at + 8] for at in range(0, len(seen), 8)]
        return sum(max(row) * len(row) - sum(row) for row in rows)

    grouped = ExampleOrder(lengths, step=8, device=8, seed=1, grouped=True)
    loose = ExampleOrder(lengths, step=8, device=8, seed=1, grouped=False)
    assert padded(grouped) < 0.2 * padded(loose)
    first = list(grouped)
    grouped.set_epoch(1)
    assert list(grouped) != first


def test_another_seed_is_another_order():
    one, other = (
        list(ExampleOrder([5] * 50, step=2, device=2, seed=seed, grouped=True)) for seed in (1, 2)
    )
    assert one != other
