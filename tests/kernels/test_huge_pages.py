"""Large tensors on huge pages are tensors like any other."""

import gc
import mmap
import os
import weakref
from pathlib import Path

import pytest
import torch

from llavakit.kernels import huge_pages

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


def resident_files():
    lines = Path("/proc/self/smaps").read_text().splitlines()
    found, ours = 0, False
    for line in lines:
        if not line.split()[0].endswith(":"):
            ours = line.endswith("weights.bin")
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux counts resident pages")
def test_forgotten_weights_of_a_mapped_file_take_no_memory_and_their_neighbours_stay(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes([1]) * (8 << 20))
    storage = torch.UntypedStorage.from_file(str(file), False, 8 << 20)
    mapped = torch.empty(0, dtype=torch.uint8).set_(storage)
    before, packed, behind = mapped[:5000], mapped[5000 : 6 << 20], mapped[6 << 20 :]
    behind[:10] = 7  # written weights, which the file does not hold
    assert int(mapped.sum(dtype=torch.int64)) == (8 << 20) + 60
    assert resident_files() >= 8 << 20
    huge_pages.forget(packed)
    assert resident_files() <= (2 << 20) + 3 * mmap.PAGESIZE
    assert bool((before == 1).all()) and behind[:11].tolist() == [7] * 10 + [1]
    assert bool((packed == 1).all())


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_forgetting_little_or_nothing_harms_nobody(size):
    around = torch.ones(5000 + size, dtype=torch.uint8)
    huge_pages.forget(around[2500 : 2500 + size])
    huge_pages.forget(torch.empty(4, device="meta"))
    assert bool((around[:2500] == 1).all()) and bool((around[2500 + size :] == 1).all())


def test_forgotten_files_leave_memory_and_are_read_again(tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "weights.safetensors"
    made = torch.arange(4 << 20, dtype=torch.float32)
    save_file({"weight": made}, file)
    weight = load_file(file)["weight"]
    assert float(weight.sum()) > 0  # reads all of it
    before = resident_file_bytes()
    huge_pages.forget_files()
    assert before - resident_file_bytes() > weight.nbytes // 2
    assert torch.equal(weight, made)


def test_files_that_were_written_to_in_memory_are_not_forgotten(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes([1]) * (1 << 20))
    storage = torch.UntypedStorage.from_file(str(file), False, 1 << 20)
    mapped = torch.empty(0, dtype=torch.uint8).set_(storage)
    mapped[5000:5010] = 7
    huge_pages.forget_files()
    assert int(mapped.sum(dtype=torch.int64)) == (1 << 20) + 60


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile:"))
