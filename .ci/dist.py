"""What `make dist` runs: builds wheel and sdist, and proves both from the outside.

The sdist must hold the project and the wheel the package, file by file as git has them. Some of
the sdist's tests run. The wheel goes into an empty environment, where the bundled model answers;
then each extra is added alone to what is there, several at a time, and what it is for is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
CONSTRAINTS = ROOT / "constraints.txt"
MODULES = {
    "langchain": "llavakit.langchain",
    "llama-index": "llavakit.llama_index",
    "quant": "bitsandbytes",
    "documents": "llavakit.documents, pypdfium2",
    "heif": "pillow_heif",
    "cli": "llavakit.cli.app",
    "web": "llavakit.web.running",
    "serve": "llavakit.serving.app, llavakit.serving.runner",
    "mcp": "llavakit.mcp, mcp",
    "tracing": "llavakit.tracing, opentelemetry.trace",
    "ray": "llavakit.cluster.deploy, llavakit.cluster.batch",
    "train": "llavakit.training.run, peft, datasets",
    "eval": "llavakit.evaluation, xlsxwriter",
    "retrieval": "llavakit.retrieval.lance",
    "video": "llavakit.videos, av",
    "qdrant": "llavakit.retrieval.qdrant",
}
"""What each extra is for; a new extra without a line here is an error."""
NOT_FOR_USERS = {"all", "dev", "docs"}
SDIST_TESTS = ["tests/prompts", "tests/test_backend.py"]
QUESTION = """
import llavakit
answer = llavakit.load("demo").ask("examples/data/heart.png", "What is in this image?")
assert answer == "a red heart", answer
print("the wheel says:", answer)
"""


def main() -> None:
    """Build, check, install, ask."""
    check_extras()
    for old in DIST.glob("*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    check_contents(sdist, wheel)
    with tempfile.TemporaryDirectory() as folder:
        test_sdist(sdist, Path(folder))
        base = test_wheel(wheel, Path(folder))
        test_extras(wheel, base, Path(folder))
    print(f"{sdist.name} and {wheel.name} are good.")


def run(*command: object, cwd: Path = ROOT, **variables: str) -> None:
    """Run a command; its failure is ours."""
    line = [str(one) for one in command]
    print("+", " ".join(line), flush=True)
    subprocess.run(line, check=True, cwd=cwd, env={**os.environ, **variables})


def check_extras() -> None:
    """Every extra of the project has a line above."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    if different := extras ^ (MODULES.keys() | NOT_FOR_USERS):
        sys.exit(f"Extras that are in pyproject.toml or here, not in both: {sorted(different)}")


def tracked(*folders: str) -> set[str]:
    """Files that git has in folders of the project."""
    command = ["git", "ls-files", "-z", "--", *folders]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return set(filter(None, found.split("\0")))


def check_contents(sdist: Path, wheel: Path) -> None:
    """Hold the archives to what git has: nothing is missing, and nothing is there by accident."""
    package = {name.removeprefix("src/") for name in tracked("src") if not name.endswith(".cpp")}
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    libraries = {name for name in names if name.endswith(".so")}
    same("the wheel", set(names) - libraries, package)
    if not libraries:
        sys.exit("The wheel has no compiled kernels; is there a C++ compiler?")
    with tarfile.open(sdist) as archive:
        inside = {
            name.partition("/")[2]
            for name in archive.getnames()
            if archive.getmember(name).isfile()
        }
    made = {name for name in inside if ".egg-info/" in name or name in ("PKG-INFO", "setup.cfg")}
    left = {name for name in tracked() if name.startswith((".github/", ".git", ".pre-commit"))}
    same("the sdist", inside - made - {"MANIFEST.in"}, tracked() - left - {"MANIFEST.in"})


def same(what: str, found: set[str], expected: set[str]) -> None:
    """Exit if two sets of files differ."""
    if found != expected:
        sys.exit(
            f"In {what}, missing: {sorted(expected - found)[:20]}; "
            f"unexpected: {sorted(found - expected)[:20]}"
        )


def test_sdist(sdist: Path, folder: Path) -> None:
    """Run some of the sdist's tests, on the package that is in it; it has them all (see above)."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (one for one in folder.iterdir() if one.is_dir())
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SDIST_TESTS)
    run(*command, cwd=unpacked, PYTHONPATH=str(unpacked / "src"))


def test_wheel(wheel: Path, folder: Path) -> Path:
    """Install the wheel in an empty environment and ask; return the environment's interpreter."""
    base = environment(folder / "base")
    pip(base, "torch")
    pip(base, wheel)
    run(base, "-c", QUESTION)
    return base


def test_extras(wheel: Path, base: Path, folder: Path) -> None:
    """Add each extra, alone, to what the base has; import what it is for."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(test_extra, one, wheel, base, folder) for one in MODULES]:
            done.result()


def test_extra(extra: str, wheel: Path, base: Path, folder: Path) -> None:
    """Test one extra, in an environment that sees the packages of the base."""
    python = environment(folder / extra)
    # What the base has need not be installed again.
    (site_packages(python) / "base.pth").write_text(f"{site_packages(base)}\n")
    pip(python, f"llavakit[{extra}] @ {wheel.as_uri()}")
    run(python, "-c", f"import {MODULES[extra]}", cwd=folder)
    if extra == "cli":
        run(python, base.with_name("llavakit"), "--version", cwd=folder)  # the script is the base's


def environment(folder: Path) -> Path:
    """Make an empty environment; return its interpreter."""
    venv.create(folder)  # without pip: ours installs there, and a dozen copies take minutes
    return folder / "bin" / "python"


def site_packages(python: Path) -> Path:
    """Where an environment keeps its packages."""
    (found,) = (python.parents[1] / "lib").glob("python*/site-packages")
    return found


def pip(python: Path, what: object) -> None:
    """Install something for an interpreter, in the versions that the project is tested with."""
    options = ("--quiet", "--disable-pip-version-check", "-c", CONSTRAINTS)
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, what)


if __name__ == "__main__":
    main()
