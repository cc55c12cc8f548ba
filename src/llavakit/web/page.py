"""The page itself: gradio's components, and which of them calls whom at the controller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import wraps
from typing import Any, TypeAlias

import gradio as gr

from llavakit.errors import InputError, LlavaKitError
from llavakit.web import style
from llavakit.web.answering import sentence
from llavakit.web.controller import Controller, Wish
from llavakit.web.guard import COOKIE
from llavakit.web.rendering import feedback, to_chat, turn_of, typed
from llavakit.web.tasks import TASKS, ReadyTask
from llavakit.web.visitors import Visit

FLAGS = ("Like", "Dislike", "Flag")
"""Votes are thumbs; the flag reports an answer that should not have been given."""
_FILES = ["image", ".pdf", ".tif", ".tiff"]
_LISTENING: dict[str, Any] = {
    "concurrency_limit": None,
    "show_progress": "hidden",
    "api_visibility": "private",
}

Updates: TypeAlias = AsyncIterator[tuple[Any, Any]]
"""Of the conversation and the box."""
Values: TypeAlias = Mapping[Any, Any]
"""What stands in the components."""


def build(controller: Controller) -> gr.Blocks:
    """Build the page of a controller."""
    page: gr.Blocks = _Page(controller).blocks
    return page


class _Page:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        with gr.Blocks(title="llavakit", fill_height=True, analytics_enabled=False) as self.blocks:
            self._token = gr.Textbox(visible="hidden")
            self._draw_settings()
            self._draw_chats()
            self._draw_top()
            self._chat = self._draw_chat()
            with gr.Row(elem_id="lk-tasks"):
                self._tasks = [gr.Button(task.label, size="sm", min_width=0) for task in TASKS]
            self._box = self._draw_box()
            gr.HTML(style.foot(controller.log is not None), elem_id="lk-foot")
            self._listen()

    # What there is to see

    def _draw_top(self) -> None:
        models = self._controller.model_cache
        with gr.Row(elem_id="lk-top"):
            self._name = gr.HTML(style.head(models.label(models.default)), elem_id="lk-name")
            self._again = gr.Button("Regenerate", size="sm", min_width=0, elem_id="lk-again")
            self._chats = gr.Button("Chats", size="sm", min_width=0, elem_id="lk-chats-open")
            self._clear = gr.Button("New chat", size="sm", min_width=0, elem_id="lk-clear")
            self._settings = gr.Button("Settings", size="sm", min_width=0, elem_id="lk-set")
            self._dark = gr.Button("◐", size="sm", min_width=0, elem_id="lk-dark")

    def _draw_chat(self) -> gr.Chatbot:
        chat = gr.Chatbot(
            elem_id="lk-chat",
            show_label=False,
            scale=1,
            height="auto",
            min_height=200,
            editable="user",
            group_consecutive_messages=False,
            buttons=["copy"],
            layout="bubble",
            latex_delimiters=[],  # a dollar is a dollar
            allow_tags=False,
            feedback_options=FLAGS,
            placeholder=style.EMPTY,
            examples=[
                {"text": example.question, "files": [str(example.file)]}
                for example in self._controller.examples
            ],
        )
        # They lie among the uploads, and go with the page.
        for shown in chat.examples or ():
            files: Any = shown["files"]
            self._controller.uploads.keep(str(file["path"]) for file in files)
        return chat

    def _draw_box(self) -> gr.MultimodalTextbox:
        return gr.MultimodalTextbox(
            elem_id="lk-box",
            show_label=False,
            label="Your question",
            file_types=_FILES,
            file_count="multiple",
            placeholder="Ask about images or a PDF",
            max_plain_text_length=self._controller.settings.max_text,
            autofocus=True,
            submit_btn=True,
            stop_btn=False,
        )

    def _draw_chats(self) -> None:
        with gr.Sidebar(position="left", open=False, label="Chats", elem_id="lk-chats"):
            gr.HTML(style.CHATS)
            self._restored = gr.Button("Show the opened chat", elem_id="lk-restored")

    def _draw_settings(self) -> None:
        settings, model_cache = self._controller.settings, self._controller.model_cache
        with gr.Sidebar(position="right", open=False, label="Settings", elem_id="lk-settings"):
            gr.HTML("<h2>Settings</h2>")
            model = gr.Dropdown(
                [(offer.label, offer.name) for offer in model_cache.offers],
                value=model_cache.default,
                label="Model",
                interactive=True,
            )
            temperature = gr.Slider(
                0,
                2,
                value=settings.temperature,
                step=0.05,
                label="Temperature",
                info="0 always takes the likeliest word.",
            )
            top_p = gr.Slider(
                0.05,
                1,
                value=settings.top_p,
                step=0.05,
                label="Top-p",
                info="Sample from the likeliest words of this share only.",
            )
            max_tokens = gr.Slider(
                1, settings.most_tokens, value=settings.max_tokens, step=1, label="Longest answer"
            )
            seed = gr.Textbox(
                label="Seed",
                info="A number: the same one gives the same answer. Empty samples anew.",
                max_length=20,
            )
            system = gr.Textbox(
                label="System text",
                lines=3,
                placeholder="Empty: what the model was trained with",
                max_length=settings.max_text,
            )
            pages = gr.Textbox(
                label="Pages of documents", placeholder="All; or, such as, 1-3,7", max_length=100
            )
        self._controls = [model, temperature, top_p, max_tokens, seed, system, pages]

    # What happens

    def _listen(self) -> None:
        box, chat, shown = self._box, self._chat, [self._chat, self._box]
        controls: set[Any] = set(self._controls)
        asked = [box.submit(_noticed(self._send), {box, *controls}, shown, **_LISTENING)]
        box.stop(self._stop, None, None, **_LISTENING)
        for button, task in zip(self._tasks, TASKS, strict=True):
            does = _noticed(self._task(task))
            asked.append(button.click(does, {box, *controls}, shown, **_LISTENING))
        for event, does in (
            (chat.example_select, _noticed(self._example)),
            (chat.edit, _noticed(self._edit)),
            (chat.retry, _noticed(self._regenerate)),
            (self._again.click, _noticed(self._regenerate)),
        ):
            asked.append(event(does, controls, shown, **_LISTENING))
        for answered in asked:
            answered.then(None, None, None, js=style.KEEP_CHAT)
        for cleared in (self._clear.click, chat.clear):
            cleared(_noticed(self._new_chat), None, shown, **_LISTENING)
        if self._controller.log is not None:
            chat.like(self._vote, None, None, **_LISTENING)
        model: Any = self._controls[0]
        model.change(self._name_of, model, self._name, **_LISTENING)
        self._restored.click(self._show_restored, None, shown, **_LISTENING)
        self._chats.click(None, None, None, js=style.TOGGLE_CHATS)
        self._dark.click(None, None, None, js=style.TOGGLE_DARK)
        self._settings.click(None, None, None, js=style.TOGGLE_SETTINGS)
        loaded = self.blocks.load(
            self._enter, self._token, [*shown, self._token], js=style.FIND_TOKEN, **_LISTENING
        )
        loaded.then(None, self._token, None, js=style.KEEP_TOKEN)
        # Only a page with something to unload keeps the connection by which visitors are counted.
        self.blocks.unload(lambda: None)

    def _name_of(self, model: str) -> str:
        return style.head(self._controller.model_cache.label(model))

    def _visit(self, request: gr.Request) -> Visit:
        visit = self._controller.visitors.of(request.session_hash or "")
        visit.owner = visit.owner or request.cookies.get(COOKIE, "")
        return visit

    def _wish(self, values: Values) -> Wish:
        return self._controller.wish(*(values[control] for control in self._controls))

    async def _enter(self, token: str, request: gr.Request) -> tuple[Any, Any, str]:
        try:
            visit = self._controller.visitors.enter(request.session_hash or "", token or "")
        except LlavaKitError as error:
            gr.Info(sentence(error))
            return gr.skip(), gr.skip(), ""
        return self._look(visit), _asking(), visit.token

    async def _send(self, values: Values, request: gr.Request) -> Updates:
        visit, (text, files) = self._visit(request), self._typed(values)
        changes = self._controller.send(visit, text, files, self._wish(values))
        async for update in self._show(visit, changes, empty_box=True):
            yield update

    def _task(self, task: ReadyTask) -> Callable[..., Updates]:
        async def asked(values: Values, request: gr.Request) -> Updates:
            visit, (text, files) = self._visit(request), self._typed(values)
            question = task.question(text)
            if not question:
                raise InputError("Write the question first; a word or two answer it then.")
            if not files and not visit.conversation.pictures:
                raise InputError("Add an image first.")
            changes = self._controller.send(visit, question, files, self._wish(values))
            async for update in self._show(visit, changes, empty_box=True):
                yield update

        return asked

    def _typed(self, values: Values) -> tuple[str, list[str]]:
        value = values[self._box] or {}
        return value.get("text") or "", [str(file) for file in value.get("files") or ()]

    async def _example(self, values: Values, request: gr.Request, chosen: gr.SelectData) -> Updates:
        visit = self._visit(request)
        changes = self._controller.example(visit, int(chosen.index), self._wish(values))
        async for update in self._show(visit, changes):
            yield update

    async def _edit(self, values: Values, request: gr.Request, edited: gr.EditData) -> Updates:
        visit = self._visit(request)
        # The browser shows the new words already; should they be refused, these are right.
        yield self._look(visit), gr.skip()
        turn = turn_of(visit.conversation, edited.index)
        changes = self._controller.edit(visit, turn, typed(str(edited.value)), self._wish(values))
        async for update in self._show(visit, changes):
            yield update

    async def _regenerate(self, values: Values, request: gr.Request) -> Updates:
        visit = self._visit(request)
        changes = self._controller.again(visit, self._wish(values))
        async for update in self._show(visit, changes):
            yield update

    async def _new_chat(self, request: gr.Request) -> Updates:
        visit = self._visit(request)
        self._controller.clear(visit)
        yield self._look(visit), _asking()

    async def _show_restored(self, request: gr.Request) -> tuple[Any, Any]:
        return self._look(self._visit(request)), _asking()

    async def _stop(self, request: gr.Request) -> None:
        self._visit(request).stop()

    async def _vote(self, request: gr.Request, vote: gr.LikeData) -> None:
        given: Any = vote.liked
        word = (FLAGS[0] if given else FLAGS[1]) if isinstance(given, bool) else given
        visit = self._visit(request)
        try:
            turn = turn_of(visit.conversation, vote.index)
            await self._controller.vote(visit, turn, str(word) or None)
        except LlavaKitError as error:
            gr.Info(sentence(error))

    async def _show(
        self, visit: Visit, changes: AsyncIterator[None], *, empty_box: bool = False
    ) -> Updates:
        """Yield the conversation at each change; the box stops meanwhile, and sends otherwise."""
        begun = False
        async for _ in changes:
            if visit.busy:
                box = gr.skip() if begun else _stopping(empty_box)
                begun = True
                yield self._look(visit), box
        yield self._look(visit), _asking() if begun or not empty_box else _emptied()

    def _look(self, visit: Visit) -> Any:
        value: Any = to_chat(visit.conversation, self._controller.model_cache.has_maps)
        if self._controller.log is None:
            return value
        return gr.Chatbot(value=value, feedback_value=feedback(visit.conversation))


def _noticed(does: Callable[..., Updates]) -> Callable[..., Updates]:
    """Show a visitor's mistake as a plain notice; the page stays as it is."""

    @wraps(does)
    async def noticed(*arguments: Any) -> Updates:
        try:
            async for update in does(*arguments):
                yield update
        except LlavaKitError as error:
            gr.Info(sentence(error))
            yield gr.skip(), gr.skip()

    return noticed


def _asking() -> Any:
    return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)


def _emptied() -> Any:
    return gr.MultimodalTextbox(value=None, submit_btn=True, stop_btn=False)


def _stopping(empty: bool) -> Any:
    if empty:
        return gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)
    return gr.MultimodalTextbox(submit_btn=False, stop_btn=True)
