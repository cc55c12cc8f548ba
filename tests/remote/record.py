"""Record conversations with real servers: ``python -m tests.remote.record [SERVER[/NAME] ...]``.

The servers are those of ``tests/remote/peers.py``, which names the environment variables. What was
recorded lies in ``tests/remote/recorded``; look at the difference before it is committed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.remote.conversations import BY_SERVER, hold
from tests.remote.exchanges import recording
from tests.remote.peers import running, variables

FOLDER = Path(__file__).parent / "recorded"
_MOMENT = re.compile(r'("created": ?)\d+')


def path_of(server: str) -> Path:
    return FOLDER / f"{server.replace(' ', '-')}.json"


def main(names: list[str]) -> int:
    """Record; gives the number of conversations that failed, which stay as they were."""
    failed = 0
    for server in dict.fromkeys(name.split("/")[0] for name in names or BY_SERVER):
        if missing := [name for name in variables(server) if not os.environ.get(name)]:
            print(f"{server}: not recorded, for want of {', '.join(missing)}")
            continue
        chosen = [name.split("/")[1] for name in names if name.startswith(f"{server}/")]
        path = path_of(server)
        held = json.loads(path.read_text()) if chosen and path.exists() else {}
        with running(server) as url:
            for name in chosen or BY_SERVER[server]:
                try:
                    held[name] = _held(server, url, name)
                except Exception:
                    failed += 1
                    traceback.print_exc()
                    print(f"{server}/{name} FAILED", flush=True)
        path.write_text(json.dumps(held, indent=0, ensure_ascii=True, sort_keys=True) + "\n")
    return failed


def _held(server: str, url: str, name: str) -> dict[str, Any]:
    began = time.monotonic()
    with recording(url, lambda text: _shown(server, text)) as (proxy, exchanges):
        outcome = hold(proxy, BY_SERVER[server][name])
    print(f"{server}: {name} ({time.monotonic() - began:.1f} s)", flush=True)
    return {"exchanges": exchanges, "outcome": outcome}


def _shown(server: str, text: str) -> str:
    """Without moments, and without the paths of the machine that recorded it."""
    for name in variables(server):
        text = text.replace(os.environ[name], f"/{name.rsplit('_', 1)[-1].lower()}")
    return _MOMENT.sub(r"\g<1>0", text)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
