"""``llavakit ask``: one question about images, one answer."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llavakit.backend import Backend
from llavakit.cli import options
from llavakit.cli.model import ModelArguments, takes_model
from llavakit.cli.pictures import to_images
from llavakit.cli.terminal import Waiting, told_errors, usage_error
from llavakit.documents.ranges import named_range
from llavakit.streams import Gathering
from llavakit.values import Completion, Message, SamplingParams, Text


@takes_model()
def ask(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]... [QUESTION]",
            help="Images (paths, URLs, - for stdin, scan.pdf#pages=1-3), and last the question.",
            show_default=False,
        ),
    ] = None,
    image_file: Annotated[
        list[str] | None,
        typer.Option("--image-file", help="Further images, separated by --sep."),
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", help="The question; all arguments are images then.")
    ] = None,
    sep: Annotated[str, typer.Option("--sep", help="What separates --image-file.")] = ",",
    page: options.Page = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the text.")
    ] = False,
    system: options.System = None,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    max_tokens: options.MaxTokens = 512,
    seed: options.Seed = None,
    num_beams: Annotated[
        int, typer.Option("--num-beams", "--num_beams", help="Only 1: there is no beam search.")
    ] = 1,
    chosen: ModelArguments = ModelArguments(),  # noqa: B008
    debug: options.Debug = False,
) -> None:
    """Ask one question about images or pages of documents.

    llavakit ask circle.png "What colour is the circle?"

    The answer goes to stdout, word by word on a terminal. It is greedy, and so always the same,
    unless --temperature is given (LLaVA's own command line draws with 0.2).
    """
    if num_beams != 1:
        raise usage_error("There is no beam search here; leave --num-beams at 1.")
    names, question = _split(arguments or [], query)
    if not question.strip():
        raise usage_error("The question is blank; say what to find out about the image.")
    for listed in image_file or []:
        names += [name.strip() for name in listed.split(sep) if name.strip()]
    with told_errors(debug):
        params = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        images = to_images(names, page or ())
        backend = chosen.load()
        messages = [Message("system", system)] if system else []
        messages.append(Message("user", [*images, Text(question)]))
        echo = sys.stdout.isatty() and not json_output
        completion, timings = _answer(backend, messages, params, chosen.model, echo)
        if json_output:
            print(_as_json(completion, chosen.model, timings))
        else:
            print("" if echo else completion.text.strip())


def _split(arguments: list[str], query: str | None) -> tuple[list[str], str]:
    """The images and the question."""
    if query is not None:
        return list(arguments), query
    if not arguments:
        raise usage_error('Ask something: llavakit ask image.png "What is this?"')
    *names, question = arguments
    if question == "-" or _is_file(question):
        raise usage_error(f"The last argument must be the question, but {question!r} is an image.")
    return names, question


def _is_file(name: str) -> bool:
    try:
        return Path(named_range(name)[0]).is_file()
    except (OSError, ValueError):  # a long question is no path
        return False


def _answer(
    backend: Backend, messages: list[Message], params: SamplingParams, model: str, echo: bool
) -> tuple[Completion, dict[str, float]]:
    gathering = Gathering()
    begun = time.perf_counter()
    waiting = Waiting(f"Waiting for {model}")
    timings: dict[str, float] = {}
    try:
        with backend.stream(messages, params) as chunks:
            timings["ready"] = time.perf_counter() - begun
            for chunk in chunks:
                timings.setdefault("first_token", time.perf_counter() - begun)
                waiting.over()
                gathering.add(chunk)
                if echo:
                    print(chunk.text, end="", flush=True)
    finally:
        waiting.over()
    timings["total"] = time.perf_counter() - begun
    return gathering.completion(), timings


def _as_json(completion: Completion, model: str, timings: dict[str, float]) -> str:
    usage = {**asdict(completion.usage), "total_tokens": completion.usage.total_tokens}
    return json.dumps(
        {
            "text": completion.text.strip(),
            "finish_reason": completion.finish_reason,
            "usage": usage,
            "model": model,
            "timings": {f"{name}_s": round(value, 4) for name, value in timings.items()},
        },
        ensure_ascii=False,
    )
