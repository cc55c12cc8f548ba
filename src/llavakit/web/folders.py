"""Folders of pages: each has its own, and gradio takes them all for its folder of uploads.

gradio learns from the environment where uploads lie (``GRADIO_TEMP_DIR``): an app and its
components when they are made, the check of a file's place at every event. One process may show
several pages. So the variable names a page's own folder while that page is made, and afterwards
the folder in which those of all pages lie.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "GRADIO_TEMP_DIR"


class PageFolders:
    """The folders of all pages that are open in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[Path] = set()
        self._root: Path | None = None
        self._before: str | None = None

    @contextmanager
    def making(self) -> Iterator[Path]:
        """Yield a new folder with ``uploads`` in it, which gradio uses for what is made meanwhile.

        One page is made at a time. The folder is removed by :meth:`remove`, or here after an
        error.
        """
        with self._lock:
            folder = self._add()
            os.environ[VARIABLE] = str(folder / "uploads")
            try:
                yield folder
            except BaseException:
                self._remove(folder)
                raise
            finally:
                if self._root is not None:
                    os.environ[VARIABLE] = str(self._root)

    def remove(self, folder: Path) -> None:
        """Remove a page's folder; behind the last one, gradio's setting is as it was before."""
        with self._lock:
            self._remove(folder)

    def _add(self) -> Path:
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="llavakit-web-")).resolve()
            self._before = os.environ.get(VARIABLE)
        folder = Path(tempfile.mkdtemp(prefix="page-", dir=self._root))
        self._open.add(folder)
        (folder / "uploads").mkdir()
        return folder

    def _remove(self, folder: Path) -> None:
        self._open.discard(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if self._open or self._root is None:
            return
        shutil.rmtree(self._root, ignore_errors=True)
        self._root = None
        if self._before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = self._before


FOLDERS = PageFolders()
"""Those of this process, as the environment is the process's."""
