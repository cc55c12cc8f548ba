"""Large tensors on huge pages are tensors like any other."""

import gc
import mmap
import os
import weakref

import pytest
import torch

from llavakit.model import huge_pages

MAKERS = pytest.mark.parametrize("make", [huge_pages.empty, huge_pages.sparse])


@MAKERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(3, 5), (2, 1024, 1025), (0, 4)])
def test_it_has_the_shape_and_keeps_what_is_written(make, shape, dtype):
    made = make(shape, dtype)
    assert made.shape == shape
    assert made.dtype == dtype
    assert made.is_contiguous()
    made.fill_(3)
    assert bool((made == 3).all())


def test_the_memory_goes_with_the_last_tensor_that_sees_it(monkeypatch):
    held = []

    class Watched(mmap.mmap):
        def __new__(cls, *args, **options):
            self = super().__new__(cls, *args, **options)
            held.append(weakref.ref(self))
            return self

    monkeypatch.setattr(mmap, "mmap", Watched)
    view = huge_pages.empty((4, huge_pages.WORTH), torch.float32)[1:]
    gc.collect()
    assert held[0]() is not None
    view[0, :3] = 1
    del view
    gc.collect()
    assert held[0]() is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_writes_into_a_copy():
    made = huge_pages.empty((huge_pages.WORTH,), torch.float32)
    made[0] = 1
    child = os.fork()
    if child == 0:
        made[0] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert made[0] == 1


@MAKERS
def test_without_huge_pages_it_is_an_ordinary_tensor(make, monkeypatch):
    def refuse(*args):
        raise OSError(22, "Invalid argument")

    class Plain(mmap.mmap):
        madvise = refuse

    monkeypatch.setattr(mmap, "mmap", Plain)
    made = make((huge_pages.WORTH,), torch.float32)
    assert made.shape == (huge_pages.WORTH,)
