import pytest

from llavakit.evaluation import Data, evaluate, open_benchmark
from llavakit.testing import FakeBackend
from tests.evaluation.datasets import WRITERS


@pytest.fixture
def written(tmp_path):
    """Writes a benchmark's data set; gives its folder."""

    def write(name):
        root = tmp_path / "data" / name
        if not root.exists():
            WRITERS[name](root)
        return root

    return write


@pytest.fixture
def ask(written, tmp_path):
    """Asks a data set of a backend or of a script; gives the results and their folder."""

    def run(name, answers, data=None, **options):
        read = open_benchmark(name, data or Data(written(name)))
        backend = FakeBackend(answers) if isinstance(answers, list) else answers
        out = tmp_path / "out" / name
        return evaluate(read, backend, out, model="a/model", **options), out

    return run
