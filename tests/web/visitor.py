"""What a visitor does and sees, in words; playwright is known here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PATIENCE = 15_000
"""Milliseconds; only a failing test waits so long."""


class Visitor:
    """One browser with one tab on the page."""

    def __init__(self, context: Any, url: str) -> None:
        self._context = context
        self._url = url
        context.set_default_timeout(PATIENCE)
        self.foreign_requests: list[str] = []
        self.complaints: list[str] = []
        self.tab = context.new_page()
        self.tab.on("request", self._note_request)
        self.tab.on("console", self._note_console)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.goto(url)
        self._settle()

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith((self._url, "data:", "blob:")):
            self.foreign_requests.append(request.url)

    def _note_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _settle(self) -> None:
        # The token is kept when the page has told the server who it is.
        self.tab.wait_for_function("sessionStorage.getItem('llavakit-visit')")

    def attach(self, *files: Path) -> None:
        """Adds files to the box, and waits until they are there."""
        before = self.tab.locator("#lk-box .thumbnail-item").count()
        with self.tab.expect_file_chooser() as chooser:
            self.tab.click("#lk-box .upload-button")
        chooser.value.set_files([str(file) for file in files])
        self.tab.wait_for_function(
            "n => document.querySelectorAll('#lk-box .thumbnail-item').length === n",
            arg=before + len(files),
        )

    def write(self, text: str) -> None:
        self.tab.fill("#lk-box textarea", text)

    def ask(self, text: str, *files: Path) -> None:
        """Asks, and does not wait for the answer."""
        if files:
            self.attach(*files)
        self.write(text)
        self.tab.press("#lk-box textarea", "Enter")

    def turns(self) -> list[dict[str, Any]]:
        """What the page shows of each turn: question, images, answer, facts, error, status."""
        return list(self.tab.evaluate(_TURNS))

    def _wait(self, number: int, holds: str) -> dict[str, Any]:
        """A turn as soon as something holds for it, at the very moment when it does."""
        found = self.tab.wait_for_function(
            f"n => {{ const turn = ({_TURNS})()[n - 1]; return turn && {holds} && turn; }}",
            arg=number,
        )
        return dict(found.json_value())

    def answer(self, number: int) -> str:
        """The finished answer of a turn, from 1, without the figures below it."""
        return str(self._wait(number, "turn.facts")["answer"])

    def facts(self, number: int) -> str:
        """The figures below an answer."""
        return str(self._wait(number, "turn.facts")["facts"])

    def error(self, number: int) -> str:
        """The sentence of a turn that failed."""
        return str(self._wait(number, "turn.error")["error"])

    def waits(self, number: int) -> str:
        """The status of a turn that waits, once the place in the queue is known."""
        ready = "turn.status && !turn.status.startsWith('One moment')"
        return str(self._wait(number, ready)["status"])

    def wait_for_words(self, number: int) -> None:
        """Waits until an answer is being written."""
        self._wait(number, "turn.answer.length > 20 && !turn.facts")

    @property
    def stop(self) -> Any:
        return self.tab.locator("#lk-box .stop-button")

    def choose(self, model: str, tokens: int | None = None) -> None:
        """Takes another model in the settings, and perhaps longer answers."""
        self.tab.click("#lk-set")
        self.tab.click("#lk-settings input[aria-label=Model]")
        self.tab.click(f"[role=option]:has-text('{model}')")
        if tokens is not None:
            field = "#lk-settings input[aria-label='number input for Longest answer']"
            self.tab.fill(field, str(tokens))
            self.tab.press(field, "Tab")
        self.tab.click("#lk-settings .toggle-button")

    def setting(self, label: str, value: str) -> None:
        self.tab.click("#lk-set")
        self.tab.get_by_label(label).fill(value)
        self.tab.get_by_label(label).press("Tab")
        self.tab.click("#lk-settings .toggle-button")

    def press(self, name: str) -> None:
        self.tab.get_by_role("button", name=name, exact=True).click()

    def notice(self) -> str:
        """What a plain notice says."""
        return str(self.tab.locator(".toast-body").first.inner_text())

    def reload(self) -> None:
        """Loads the page anew; what the page that goes reports of its cut stream does not count."""
        before, until = len(self.complaints), []
        self.tab.once("domcontentloaded", lambda _: until.append(len(self.complaints)))
        self.tab.reload()
        self._settle()
        del self.complaints[before : until[0]]

    def leave(self) -> None:
        """Closes the tab."""
        self._context.close()


_TURNS = """() => {
    const turns = [];
    let asking = false;
    for (const row of document.querySelectorAll('#lk-chat .message-row')) {
        const user = row.classList.contains('user-row');
        if (user && !asking)
            turns.push({question: '', pictures: 0, answer: '', facts: '', error: '', status: ''});
        asking = user;
        const turn = turns[turns.length - 1];
        const said = row.querySelector('.md');
        if (user) turn.pictures += row.querySelectorAll('img').length;
        if (said) turn[user ? 'question' : 'answer'] = said.innerText.trim();
        for (const name of ['facts', 'error', 'status']) {
            const told = row.querySelector('.lk-' + name);
            if (told) turn[name] = told.innerText;
        }
    }
    return turns;
}"""
