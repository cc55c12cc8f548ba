"""Where a model's files are: the bundled one, a local directory, or the hub."""

from __future__ import annotations

from pathlib import Path

from llavakit.errors import CheckpointError, ModelNotFoundError

WANTED = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt")
"""What is downloaded; never code, and never pickled weights when there are safetensors."""


def locate(model: str, revision: str | None = None) -> Path:
    """The directory of a checkpoint, downloaded if it is a hub id.

    Args:
        model: ``"demo"``, an alias of the catalog, a local directory, or a hub id.
        revision: branch, tag or commit, for hub ids.

    Raises:
        ModelNotFoundError: nothing of that name; the message names the nearest known ones.
        CheckpointError: a directory without a ``config.json``.
    """
    if model == "demo":
        from llavakit.demo import checkpoint_path

        return checkpoint_path()
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{model} has no config.json; name the directory that holds the checkpoint itself."
            )
        return path
    from llavakit.model import catalog

    entry = catalog.resolve(model)
    if entry is None and not _looks_like_hub_id(model):
        nearest = catalog.nearest(model)
        hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
        raise ModelNotFoundError(
            f"No model {model!r}: it is neither a known name, nor a directory, nor a hub id."
            f"{hint} `llavakit models` lists the known ones."
        )
    return download(entry.hf_id if entry is not None else model, revision)


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "/", "~"))


def download(repo: str, revision: str | None = None) -> Path:
    """A snapshot of a hub repository in the local cache (only what is missing is fetched)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(WANTED)))
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
