"""The conversation templates of the original LLaVA, by the names that its users know.

The texts, and what each template makes of a conversation, are those of the original
implementation (https://github.com/haotian-liu/LLaVA at c121f04); the tests hold every one of
them to prompts that it wrote, byte for byte. The last three are those of its
successors (https://github.com/LLaVA-VL/LLaVA-NeXT, https://github.com/apple/ml-fastvlm,
``llava/conversation.py`` of both). A model that is given
another template than the one it was trained with answers badly, without any error.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from llavakit.errors import ParameterError
from llavakit.prompts.styles import ChatML, Headed, Instructed, Labelled, Plain, Template, TurnText


def _polite(person: str) -> str:
    return (
        f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
    )


# The missing space between its sentences is the original's.
_SEES_TAGS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is "
    "able to understand the visual content that the user provides, and assist the user with a "
    "variety of tasks using natural language."
    "The visual content will be provided with the following format: "
    "<Image>visual content</Image>."
)
_SEES = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially "
    "unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead "
    "of answering something not correct. If you don't know the answer to a question, please "
    "don't share false information."
)
_MPT = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful "
    "and honest answers."
)
_ENERGY: tuple[TurnText, ...] = (
    (
        "user",
        "What are the key differences between renewable and non-renewable energy sources?",
    ),
    (
        "assistant",
        "Renewable energy sources are those that can be replenished naturally in a relatively "
        "short amount of time, such as solar, wind, hydro, geothermal, and biomass. "
        "Non-renewable energy sources, on the other hand, are finite and will eventually be "
        "depleted, such as coal, oil, and natural gas. Here are some key differences between "
        "renewable and non-renewable energy sources:\n"
        "1. Availability: Renewable energy sources are virtually inexhaustible, while "
        "non-renewable energy sources are finite and will eventually run out.\n"
        "2. Environmental impact: Renewable energy sources have a much lower environmental "
        "impact than non-renewable sources, which can lead to air and water pollution, "
        "greenhouse gas emissions, and other negative effects.\n"
        "3. Cost: Renewable energy sources can be more expensive to initially set up, but they "
        "typically have lower operational costs than non-renewable sources.\n"
        "4. Reliability: Renewable energy sources are often more reliable and can be used in "
        "more remote locations than non-renewable sources.\n"
        "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
        "different situations and needs, while non-renewable sources are more rigid and "
        "inflexible.\n"
        "6. Sustainability: Renewable energy sources are more sustainable over the long term, "
        "while non-renewable sources are not, and their depletion can lead to economic and "
        "social instability.\n",
    ),
)


def _hashes(system: str, examples: tuple[TurnText, ...] = (), *, tagged: bool = False) -> Labelled:
    return Labelled(
        system=system,
        examples=examples,
        tagged=tagged,
        user="Human",
        assistant="Assistant",
        user_end="###",
        assistant_end="###",
    )


def _vicuna(system: str, *, tagged: bool = False) -> Labelled:
    return Labelled(
        system=system,
        tagged=tagged,
        user="USER",
        assistant="ASSISTANT",
        user_end=" ",
        assistant_end="</s>",
    )


_V0 = _hashes(_polite("human"), _ENERGY)
_V1 = _vicuna(_polite("user"))
_QWEN = ChatML(system="You are a helpful assistant.", between="\n")
_DIRECT = ChatML(system="Answer the questions.")

TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "default": _V0,
        "v0": _V0,
        "llava_v0": _hashes(_polite("human")),
        "v0_mmtag": _hashes(_SEES_TAGS, tagged=True),
        "v1": _V1,
        "vicuna_v1": _V1,
        "llava_v1": _vicuna(_polite("human")),
        "v1_mmtag": _vicuna(_SEES_TAGS, tagged=True),
        "llama_2": Instructed(system=_LLAMA_2, begin="<s>"),
        "llava_llama_2": Instructed(system=_SEES, begin="<s>"),
        "mistral_instruct": Instructed(begin=""),
        "mpt": ChatML(system=_MPT),
        "chatml_direct": _DIRECT,
        "mistral_direct": _DIRECT,
        "plain": Plain(),
        "v0_plain": Plain(),
        "llava_llama_3": Headed(system=_SEES),
        "qwen_1_5": _QWEN,
        "qwen_2": _QWEN,
    }
)
"""Every template by its name; some have two names."""

OWN = "chat_template"
"""The ``conv_mode`` that asks for the checkpoint's own template, whatever its name says."""

_BY_NAME = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
    ("v0", "llava_v0"),
)
"""The templates by parts of a model's name, in this order: the original's rule."""


def template(name: str) -> Template:
    """Return the template of this name.

    Raises:
        ParameterError: there is none; the message lists the names.
    """
    found = TEMPLATES.get(name)
    if found is None:
        near = get_close_matches(name.strip().lower(), TEMPLATES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? The names are" if near else "the names are"
        raise ParameterError(
            f"There is no conversation template {name!r}; {hint} {', '.join(TEMPLATES)}; "
            f"{OWN} is the checkpoint's own."
        )
    return found


def named_template(model_name: str) -> str | None:
    """Return the template that a model's name names, None where it names none."""
    lowered = model_name.lower()
    return next((name for mark, name in _BY_NAME if mark in lowered), None)


def auto_template(model_name: str) -> str:
    """Return the template that the original takes for a model of this name.

    A name that matches nothing gives the template of the first models (``llava_v0``), which is
    right for few of today's. :func:`named_template` gives None instead.
    """
    return named_template(model_name) or "llava_v0"
