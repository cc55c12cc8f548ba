"""Names that are imported when they are first used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llavakit._lazy import lazy_names
from llavakit.errors import MissingDependencyError

PLACES = {"here": "good", "absent": "needy", "broken": "faulty"}


@pytest.fixture
def get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``__getattr__`` of a package with three modules, of which one needs what is not there."""
    folder = tmp_path / "lazy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "good.py").write_text("here = 3")
    (folder / "needy.py").write_text("import no_such_extra.inside")
    (folder / "faulty.py").write_text("import another_absent_package")
    monkeypatch.syspath_prepend(tmp_path)
    yield lazy_names("lazy_package", PLACES, ["no_such_extra"], what="The lamp", extra="light")
    for name in [name for name in sys.modules if name.startswith("lazy_package")]:
        del sys.modules[name]


def test_a_name_is_that_of_its_module(get):
    assert "lazy_package.good" not in sys.modules
    assert get("here") == 3


def test_a_missing_extra_is_named_in_one_sentence(get):
    with pytest.raises(MissingDependencyError) as caught:
        get("absent")
    assert str(caught.value) == 'The lamp needs an extra: pip install "llavakit[light]".'


def test_a_package_that_is_missing_for_another_reason_is_not_blamed_on_the_extra(get):
    with pytest.raises(ModuleNotFoundError, match="another_absent_package") as caught:
        get("broken")
    assert not isinstance(caught.value, MissingDependencyError)


def test_other_names_are_attribute_errors(get):
    with pytest.raises(AttributeError, match="module 'lazy_package' has no attribute 'other'"):
        get("other")


def test_packages_with_extras_load_none_of_them_and_say_which_is_missing():
    code = """
import sys
for name in ("anyio", "fastapi", "gradio", "mcp", "prometheus_client", "uvicorn"):
    sys.modules[name] = None
import llavakit.mcp, llavakit.serving, llavakit.web
from llavakit.errors import MissingDependencyError
for package, extra in ((llavakit.mcp, "mcp"), (llavakit.serving, "serve"), (llavakit.web, "web")):
    for name in sorted(package._PLACES):
        assert name in package.__all__
        try:
            getattr(package, name)
        except MissingDependencyError as error:
            assert f"llavakit[{extra}]" in str(error), error
        else:
            assert name == "MCPSettings", name
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr
