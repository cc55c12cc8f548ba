"""llavakit as a model of lmms-eval, which knows hundreds of further benchmarks.

lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval) finds it by the entry point
``lmms_eval.models``; it is not a dependency, and importing this module does not import it::

    python -m lmms_eval --model llavakit --model_args model=liuhaotian/llava-v1.5-7b --tasks mme

Written against the chat interface of lmms-eval 0.7 (``lmms_eval/api/model.py``, and its guide
to new models): requests are ``(context, doc_to_messages, generation settings, document id, task,
split)``, and ``doc_to_messages`` gives turns of text and images.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, NoReturn

import llavakit
from llavakit.errors import (
    MissingDependencyError,
    ParameterError,
    UnsupportedContentError,
)
from llavakit.runs.window import Asking, in_order
from llavakit.values import Completion, Image, Message, SamplingParams, Text

_MAX_TOKENS = 1024  # where a task names none, as in lmms-eval's own models
_MOST_ROUNDS = 64
_READ = ("do_sample", "num_beams", "until", "max_new_tokens", "max_gen_toks", "temperature")
_KNOWN = {"top_p", "top_k", "min_p", "repetition_penalty", "seed"}


def manifest() -> Any:
    """Describe this model to lmms-eval's registry; called by lmms-eval itself."""
    return _module("lmms_eval.models.registry_v2").ModelManifest(
        model_id="llavakit", chat_class_path=f"{__name__}.LlavaKit"
    )


def __getattr__(name: str) -> Any:
    # The class derives from one of lmms-eval's, and so exists only where that is installed.
    if name == "LlavaKit":
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _model_class() -> type:
    base = _module("lmms_eval.api.model").lmms
    return type("LlavaKit", (Chat, base), {"__module__": __name__, "__doc__": Chat.__doc__})


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"lmms-eval is needed for this ({error}); install it with: pip install lmms-eval"
        ) from error


class Chat:
    """lmms-eval's view of a :class:`~llavakit.backend.Backend`.

    Many requests are under way at once, whatever ``batch_size`` is; one above 1 says how many.

    Args:
        model: as in :func:`llavakit.load`.
        batch_size: lmms-eval's setting; above 1 it is the number of requests under way.
        device: as in :func:`llavakit.load`; None is ``"auto"``.
        max_batch_size: lmms-eval's setting, without effect here.
        **settings: further arguments of :func:`llavakit.load`, such as ``base_url``.

    Raises:
        ParameterError: it was started in several processes, which would repeat the work.
    """

    is_simple = False
    task_dict: Mapping[str, Any]
    cache_hook: Any

    def __init__(
        self,
        model: str = "demo",
        batch_size: int | str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ParameterError(
                "llavakit batches in one process; start lmms-eval without accelerate or torchrun, "
                "and use several GPUs with device_map=auto or base_url=."
            )
        many = str(batch_size).isdigit() and int(str(batch_size)) > 1
        self.window = int(str(batch_size)) if many else None
        if settings.get("base_url") is None:
            settings["device"] = device or "auto"
        self.backend = llavakit.load(str(model), **settings)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests, in their order.

        Raises:
            UnsupportedContentError: a request has video or audio.
            LlavaKitError: a request cannot be answered; lmms-eval knows no missing answers.
        """
        asked = (self._first(request.args) for request in requests)
        texts = self._answers(asked, [_params(request.args[-4]) for request in requests])
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[-4]), text)
        return texts

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answer all rounds of requests; their task says what comes next, and its end.

        Raises:
            ParameterError: a task that does not end.
        """
        answers: list[list[str]] = [[] for _ in requests]
        known: list[Any] = [None] * len(requests)
        upcoming = {at: self._first(request.args) for at, request in enumerate(requests)}
        for _ in range(_MOST_ROUNDS):
            # All requests of a round are submitted together, so that the engine can batch them.
            params = [_params(requests[at].args[-4]) for at in upcoming]
            texts = self._answers(upcoming.values(), params)
            for at, text in zip(upcoming, texts, strict=True):
                answers[at].append(text)
            following = {
                at: _next_round(
                    requests[at].args[-5], self._document(requests[at].args), answers[at], known[at]
                )
                for at in upcoming
            }
            upcoming = {}
            for at, one in following.items():
                if one is not None:
                    upcoming[at], known[at] = one
            if not upcoming:
                return answers
        raise ParameterError(f"A task is not over after {_MOST_ROUNDS} rounds; choose another one.")

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Refuse: a backend writes answers, and does not score those of others."""
        raise UnsupportedContentError(
            "llavakit gives no log-likelihoods of given answers; choose a task, or a variant of "
            "it, whose output_type is generate_until."
        )

    def _document(self, arguments: tuple[Any, ...]) -> Any:
        *_, number, task, split = arguments
        return self.task_dict[task][split][number]

    def _first(self, arguments: tuple[Any, ...]) -> tuple[Message, ...]:
        # Counted from the end: lmms-eval puts the context in front, and its guide does not.
        return _messages(arguments[-5](self._document(arguments)))

    def _answers(
        self, conversations: Iterable[tuple[Message, ...]], params: Sequence[SamplingParams]
    ) -> list[str]:
        asked = (Asking(*one) for one in zip(conversations, params, strict=True))
        texts = []
        with closing(in_order(self.backend, asked, self.window)) as outcomes:
            for outcome in outcomes:
                if not isinstance(outcome, Completion):
                    raise outcome
                texts.append(outcome.text.strip())
        return texts


def _next_round(
    to_messages: Callable[..., Any], document: Any, answers: list[str], known: Any
) -> tuple[tuple[Message, ...], Any] | None:
    payload = to_messages(
        document,
        round_idx=len(answers),
        previous_output=list(answers),
        previous_round_info=known,
    )
    if not isinstance(payload, tuple) or len(payload) != 4:
        return None
    turns, ended, _, known = payload
    return None if ended else (_messages(turns), known)


def _messages(turns: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], _parts(turn["content"])) for turn in turns)


def _parts(content: str | Sequence[Mapping[str, Any]]) -> list[str | Text | Image]:
    if isinstance(content, str):
        return [content]
    parts: list[str | Text | Image] = []
    for part in content:
        kind = part.get("type")
        if kind == "text":
            parts.append(Text(part["text"]))
        elif kind == "image":
            parts.append(Image(part["url"]))
        else:
            raise UnsupportedContentError(
                f"LLaVA reads text and images, and this task has {kind}; choose another task."
            )
    return parts


def _params(settings: Mapping[str, Any] | None) -> SamplingParams:
    """Convert a task's generation settings.

    Raises:
        ParameterError: a setting that would change answers is unknown.
    """
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    if given.get("num_beams", 1) != 1:
        raise ParameterError("There is no beam search; leave num_beams at 1.")
    unknown = sorted(set(given) - _KNOWN - set(_READ))
    if unknown:
        raise ParameterError(
            f"The generation setting {unknown[0]!r} of the task is unknown; choose another task."
        )
    temperature = float(given.get("temperature", 0))
    until = given.get("until", ())
    until = (until,) if isinstance(until, str) else tuple(until)
    return SamplingParams(
        max_tokens=int(given.get("max_new_tokens", given.get("max_gen_toks", _MAX_TOKENS))),
        temperature=temperature if given.get("do_sample", temperature > 0) else 0.0,
        stop=tuple(text for text in until if text),
        **{name: given[name] for name in _KNOWN & given.keys()},
    )
