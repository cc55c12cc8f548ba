"""What opens pages keeps its fence when it is written down, copied or sent to another process."""

import copy
import pickle

import pytest

from llavakit.documents import PageStore
from llavakit.errors import ParameterError
from llavakit.llama_index import ImageResolver, PageImageReader
from llavakit.sources import DEFAULT_POLICY, SourcePolicy


def without_its_class(written):
    return {name: value for name, value in written.items() if name != "class_name"}


WAYS = {
    "to_dict": lambda one: type(one).from_dict(one.to_dict()),
    "to_json": lambda one: type(one).from_json(one.to_json()),
    "pydantic": lambda one: type(one)(**without_its_class(one.model_dump())),
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda one: one.model_copy(),
}
KINDS = pytest.mark.parametrize("kind", [ImageResolver, PageImageReader])


@KINDS
@pytest.mark.parametrize("way", list(WAYS))
def test_the_fence_and_the_store_are_the_same_afterwards(kind, way, tmp_path):
    fence = SourcePolicy(roots=(tmp_path,), allow_urls=False, max_bytes=1000)
    again = WAYS[way](kind(policy=fence, store=tmp_path / "pictures"))
    assert again.policy == fence and again.store.folder == PageStore(tmp_path / "pictures").folder
    assert WAYS[way](kind()).policy == DEFAULT_POLICY


@KINDS
def test_what_was_written_without_a_fence_takes_a_new_one_or_is_refused(kind, tmp_path):
    written = kind(policy=SourcePolicy(allow_files=False)).to_dict()
    del written["policy"]
    with pytest.raises(ParameterError, match=f"{kind.__name__} .*policy"):
        kind.from_dict(written)
    fence = SourcePolicy(roots=(tmp_path,))
    assert kind.from_dict(written, policy=fence).policy == fence
