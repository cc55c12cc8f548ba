"""Where a model's files are: the bundled one, a local directory, or the hub."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from llavakit.errors import CheckpointError, ModelNotFoundError

_LISTING_SECONDS = 10.0
WANTED = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt")
"""What is downloaded of every repository; never code."""

PICKLED = {
    "pytorch_model*.bin": "model*.safetensors",
    "adapter_model.bin": "adapter_model.safetensors",
    "non_lora_trainables.bin": "non_lora_trainables.safetensors",
    "mm_projector.bin": "mm_projector.safetensors",
}
"""Pickled weights, and what stands for the same weights as safetensors. The pickled ones are
only downloaded where there are no others, as in most repositories of 2023, and are read by a
reader that runs no code."""


def locate(model: str, revision: str | None = None, *, original: bool = False) -> Path:
    """The directory of a checkpoint, downloaded if it is a hub id.

    The catalog's names stand for the weights in HF format, also its original ids
    (``liuhaotian/llava-v1.5-7b``): they are the same weights, as safetensors. If the original
    repository itself is in the local cache, its id means that one.

    Args:
        model: ``"demo"``, an alias of the catalog, a local directory, or a hub id.
        revision: branch, tag or commit, for hub ids.
        original: names of the catalog stand for the weights in the original format; a LoRA
            that was trained with the original LLaVA needs its base so.

    Raises:
        ModelNotFoundError: nothing of that name; the message names the nearest known ones.
        CheckpointError: a directory without a ``config.json`` or ``adapter_config.json``.
    """
    if model == "demo":
        from llavakit.demo import checkpoint_path

        return checkpoint_path()
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise CheckpointError(
                f"{model} has no config.json; name the directory that holds the checkpoint itself."
            )
        return path
    from llavakit.model import catalog

    entry = catalog.resolve(model)
    if entry is None and not looks_like_hub_id(model):
        nearest = catalog.nearest(model)
        hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
        raise ModelNotFoundError(
            f"No model {model!r}: it is neither a known name, nor a directory, nor a hub id."
            f"{hint} `llavakit models` lists the known ones."
        )
    if entry is None:
        return download(model, revision)
    if original:
        return download(entry.original_id or entry.hf_id, revision)
    if not entry.hf_id:  # the bundled one, whatever its case
        return locate(entry.name)
    if model == entry.original_id and (found := _in_cache(model, revision)) is not None:
        return found
    return download(entry.hf_id, revision)


_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_POINTER = 1024


def check_pointers(path: Path) -> None:
    """Refuse a directory in which a pointer of git-lfs stands where a file should be.

    Raises:
        CheckpointError: names the first one.
    """
    for file in sorted(path.iterdir()):
        if file.is_file() and file.stat().st_size <= _LONGEST_POINTER:
            with file.open("rb") as opened:
                if opened.read(len(_POINTER)) == _POINTER:
                    raise CheckpointError(
                        f"{file} is a pointer of git-lfs and not the file itself; run "
                        f"`git lfs pull` in {path}, or download it with `hf download`."
                    )


def looks_like_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id, ``owner/name``."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "/", "~"))


def download(repo: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """A snapshot of a hub repository in the local cache (only what is missing is fetched).

    Args:
        repo: a hub id.
        revision: branch, tag or commit.
        weights: whether the weights are needed, or only the small files that describe them.

    Raises:
        ModelNotFoundError: the hub has no such repository, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        patterns = _patterns(repo, revision) if weights else ["*.json"]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
            raise ModelNotFoundError(
                f"The hub has no model {repo!r} that this account may read; check the name, or "
                "log in with `hf auth login` if it is private."
            ) from error
        raise ModelNotFoundError(
            f"{repo} is not in the local cache and the hub cannot be reached; download it where "
            "there is a network, and name its directory instead."
        ) from error


def _patterns(repo: str, revision: str | None) -> list[str]:
    """What to download of a repository, by the files that it has."""
    from huggingface_hub import model_info

    try:
        # Not `list_repo_files`: without a network that one tries for 24 seconds.
        about = model_info(repo, revision=revision, timeout=_LISTING_SECONDS)
        files = [file.rfilename for file in about.siblings or ()]
    except Exception:  # what hinders listing hinders the download, or the cache needs neither
        return list(WANTED)
    pickled = [
        pattern
        for pattern, better in PICKLED.items()
        if fnmatch.filter(files, pattern) and not fnmatch.filter(files, better)
    ]
    return [*WANTED, *pickled]


def _in_cache(repo: str, revision: str | None) -> Path | None:
    """A repository's snapshot in the local cache, if its weights are there."""
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None
    weights = [*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")]
    return path if weights and (path / "config.json").is_file() else None
