"""An app called by hand, so that a test decides when the client sends, listens and leaves."""

import asyncio
import json


class Call:
    """One request to an app.

    Attributes:
        status: of the response, once it has begun.
        sent: what came so far.
    """

    def __init__(self, app, path, body=None, *, method="POST", headers=None, more=False):
        self.status = None
        self.headers = {}
        self.sent = b""
        self.over = False
        self._heard = asyncio.Event()
        self._incoming = asyncio.Queue()
        fields = {"content-type": "application/json", "host": "test"} | (headers or {})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        if body is not None:
            self.send_body(body if isinstance(body, bytes) else json.dumps(body).encode(), more)
        self.task = asyncio.create_task(app(scope, self._incoming.get, self._send))

    def send_body(self, piece, more=True):
        """Let a piece of the body arrive."""
        self._incoming.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    def leave(self):
        """The client closes its connection."""
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            self.sent += message["body"]
            self.over = not message.get("more_body", False)
        self._heard.set()
        await self.listening(message)

    async def listening(self, message):
        """Replaced by tests whose client reads slowly."""

    async def until(self, good):
        """Waits until ``good()`` after something was sent."""
        async with asyncio.timeout(20):
            while not good():
                self._heard.clear()
                await self._heard.wait()

    async def end(self):
        """Waits for the app to be done with the call."""
        async with asyncio.timeout(20):
            await self.task
        return self

    @property
    def events(self):
        """What the events hold, as JSON where it is."""
        lines = self.sent.decode().split("\n\n")
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in data]

    @property
    def json(self):
        return json.loads(self.sent)
