"""``llavakit chat``: a conversation about images."""

from __future__ import annotations

import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from llavakit._threads import undo_when_done
from llavakit.backend import Backend
from llavakit.cli import options
from llavakit.cli.model import ModelArguments, takes_model
from llavakit.cli.output import OutputError
from llavakit.cli.pictures import to_images
from llavakit.cli.terminal import Waiting, note, sentence, told_errors, usage_error
from llavakit.errors import ContextLengthError, LlavaKitError
from llavakit.images import open_picture
from llavakit.streams import AnswerStream
from llavakit.values import Image, Message, SamplingParams, Text, Video

HELP = """\
/image PATH   show an image (path, URL, scan.pdf#pages=1-3) with the next question
/clear        forget the conversation and its images
/help         this text
/exit         leave; so do an empty line and Ctrl-D
Ctrl-C stops an answer; what was said of it stays in the conversation."""


@takes_model()
def chat(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]...", help="Images to begin with.", show_default=False),
    ] = None,
    image_file: Annotated[
        list[str] | None,
        typer.Option("--image-file", help="Further images, separated by commas."),
    ] = None,
    page: options.Page = None,
    system: options.System = None,
    temperature: options.Temperature = 0.2,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 512,
    seed: options.Seed = None,
    chosen: ModelArguments = ModelArguments(),  # noqa: B008
    debug: options.Debug = False,
) -> None:
    """Talk with a model about images, turn by turn.

    llavakit chat circle.png

    An empty line or Ctrl-D leaves; /help lists the commands.
    """
    names = list(images or [])
    for listed in image_file or []:
        names += [name.strip() for name in listed.split(",") if name.strip()]
    with told_errors(debug):
        params = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        backend = chosen.load()
        conversation = ChatSession(backend, params, chosen.model, system)
        conversation.show(names, page or ())
        _talk(conversation)


class ChatSession:
    """What was said and shown so far, and the model that answers."""

    def __init__(
        self, backend: Backend, params: SamplingParams, model: str, system: str | None
    ) -> None:
        self._backend = backend
        self._params = params
        self._model = model
        self._system = [Message("system", system)] if system else []
        self._history: list[Message] = []
        self._shown: list[Image | Video] = []
        self._thread = ThreadPoolExecutor(1)

    def show(self, names: list[str], pages: list[int] | tuple[int, ...] = ()) -> None:
        """Opens images for the next question; raises if one cannot be opened."""
        if "-" in names:
            raise usage_error("A chat reads its questions from stdin, so no image can come there.")
        # Opened now: a bad one is reported at once, and a file that changes later does not matter.
        self._shown += [
            one if isinstance(one, Video) else Image(open_picture(one.source))
            for one in to_images(names, pages)
        ]

    def clear(self) -> None:
        """Forgets everything but the system message."""
        self._history = []
        self._shown = []

    def ask(self, question: str) -> None:
        """Prints the answer as it comes; Ctrl-C ends it, and keeps what came.

        A question that fails is forgotten, its images wait for the next one.
        """
        turn = Message("user", [*self._shown, Text(question)])
        said: list[str] = []
        waiting = Waiting(f"Waiting for {self._model}")
        try:
            messages = [*self._system, *self._history, turn]
            with self._begun(messages) as chunks:
                for chunk in chunks:
                    waiting.over()
                    said.append(chunk.text)
                    print(chunk.text, end="", flush=True)
            print(flush=True)
        except KeyboardInterrupt:
            waiting.over()
            print(" [stopped]", flush=True)
        except LlavaKitError:
            if said:
                print(flush=True)
            raise
        finally:
            waiting.over()
        answer = "".join(said).strip()
        if answer:
            self._history += [turn, Message("assistant", answer)]
            self._shown = []

    def _begun(self, messages: list[Message]) -> AnswerStream:
        """The stream of an answer, begun in another thread.

        The first one loads the model, and Ctrl-C must not leave a library half imported.
        """
        begun = self._thread.submit(self._backend.stream, messages, self._params)
        try:
            return begun.result()
        except KeyboardInterrupt:
            undo_when_done(begun, AnswerStream.close)
            raise


def _talk(conversation: ChatSession) -> None:
    if sys.stdin.isatty():
        note("Ask something; /help lists the commands, an empty line leaves.")
    warned = False
    while True:
        try:
            line = _read_line()
        except EOFError:
            _leave()
            return
        except KeyboardInterrupt:
            if warned:
                _leave()
                return
            warned = True
            note("\nPress Ctrl-C once more to leave.")
            continue
        warned = False
        if not line or line == "/exit":
            return
        try:
            _obey(conversation, line)
        except OutputError:
            raise
        except ContextLengthError as error:
            note(f"{sentence(error)} /clear begins anew.")
        except (LlavaKitError, typer.Exit) as error:
            if isinstance(error, LlavaKitError):
                note(sentence(error))
        except KeyboardInterrupt:
            note("\nStopped; the conversation is as it was.")


def _leave() -> None:
    if sys.stdin.isatty():
        note("")  # the shell's prompt belongs on a line of its own


def _read_line() -> str:
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.strip()
    with contextlib.suppress(ImportError):  # Windows has its own line editing
        import readline  # noqa: F401  (arrow keys and history in `input`)
    return input("> ").strip()


def _obey(conversation: ChatSession, line: str) -> None:
    command, _, rest = line.partition(" ")
    if command == "/image":
        if not rest.strip():
            note("Name the image: /image PATH")
            return
        conversation.show([rest.strip().strip("'\"")])
        note("The image goes with the next question.")
    elif command == "/clear":
        conversation.clear()
        note("Cleared.")
    elif command == "/help":
        note(HELP)
    elif command.startswith("/"):
        note(f"There is no command {command}; /help lists them.")
    else:
        conversation.ask(line)
