"""A conversation template of the original as the Jinja template of an HF tokenizer.

An exported checkpoint is read by programs that know nothing of :mod:`llavakit.prompts`. What
they render is cut by a fast tokenizer in one go, and must give the ids that the original made
of its chunks: where that put a space before a chunk, the space is written here.
"""

from __future__ import annotations

import json

from llavakit.errors import CheckpointError
from llavakit.prompts.styles import ChatML, Headed, Instructed, Labelled, Plain, Template

# What Template._content does, for contents that are a string or a list of parts.
_CONTENT = """
{%- macro written(content) -%}
{%- set ns = namespace(text='', leading=true, ends=false) -%}
{%- if content is string -%}
{%- set ns.text = content -%}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'text' -%}
{%- set ns.text = ns.text + part['text'] -%}
{%- set ns.leading = false -%}
{%- else -%}
{%- if ns.text and not ns.text[-1].isspace() -%}
{%- set ns.text = ns.text + '\\n' -%}
{%- endif -%}
{%- if loop.last -%}
{%- set ns.ends = ns.leading -%}
{%- else -%}
{%- set ns.ends = not (loop.nextitem['type'] == 'text' and loop.nextitem['text'][:1] == '\\n') -%}
{%- endif -%}
{%- set ns.text = ns.text + IMAGE + ('\\n' if ns.ends else '') -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- ns.text -}}
{%- endmacro -%}
"""

_FRAME = """
{%- set p = namespace(text='', system=SYSTEM, head='') -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set p.system = written(message['content']) -%}
{%- endfor -%}
START
{%- for message in messages if message['role'] != 'system' -%}
{%- set content = written(message['content']) -%}
{%- if message['role'] == 'assistant' -%}
{%- set p.text = p.text + ANSWER -%}
{%- else -%}
{%- set p.text = p.text + QUESTION -%}
{%- endif -%}
{%- set p.head = '' -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- set p.text = p.text + NEXT -%}
{%- endif -%}
"""


def chat_template(template: Template, image_text: str, *, spaced: bool) -> str:
    """The Jinja template that writes conversations as a template of the original.

    Args:
        template: of the original.
        image_text: what stands for an image (``<image>``, perhaps between marks).
        spaced: a space belongs before the prompt and behind each image
            (:attr:`~llavakit.model.original.tokenizer.OriginalTokenizer.spaced`).

    Raises:
        CheckpointError: a template with tags, which moves images between turns.
    """
    if template.tagged:
        raise CheckpointError(
            "Templates with <Image> tags cannot be written for other programs; name another one "
            "with conv_mode=."
        )
    image = image_text.replace("<image>", "<image> ") if spaced else image_text
    frame = _FRAME
    for name, expression in _parts(template).items():
        frame = frame.replace(name, expression)
    # No chunk stands before an image that begins the prompt.
    first = "(' ' if p.text and not p.text.startswith('<image>') else '') + " * spaced
    text = _CONTENT.replace("IMAGE", _quoted(image)) + frame + f"{{{{- {first}p.text -}}}}"
    return text.replace("\n", "")


def _parts(template: Template) -> dict[str, str]:
    """The expressions and statements that take the places of the frame's names."""
    parts = {"SYSTEM": _quoted(template.system), "START": "", "NEXT": "''"}
    if isinstance(template, Labelled):
        user, assistant = _quoted(f"{template.user}: "), _quoted(f"{template.assistant}: ")
        parts["ANSWER"] = f"{assistant} + content + {_quoted(template.assistant_end)}"
        parts["QUESTION"] = f"{user} + content + {_quoted(template.user_end)}"
        parts["NEXT"] = _quoted(f"{template.assistant}:")
        shown = _quoted(_examples(template))
        head = f"(p.system + {_quoted(template.user_end)} if p.system else '')"
        parts["START"] = f"{{%- set p.text = {head} + {shown} -%}}"
    elif isinstance(template, Instructed):
        head = "('<<SYS>>\\n' + p.system + '\\n<</SYS>>\\n\\n' if p.system else '')"
        parts["START"] = f"{{%- set p.head = {head} -%}}"
        alone = "('[INST] ' + p.head + ' [/INST]' if p.head else '')"
        parts["ANSWER"] = f"{alone} + ' ' + content + ' </s>'"
        begin = f"({_quoted(template.begin)} if p.text else '')"
        parts["QUESTION"] = f"{begin} + '[INST] ' + p.head + content + ' [/INST]'"
    elif isinstance(template, ChatML):
        end = _quoted(f"<|im_end|>{template.between}")
        parts |= _blocks("<|im_start|>{role}\n", end)
    elif isinstance(template, Headed):
        parts |= _blocks("<|start_header_id|>{role}<|end_header_id|>\n\n", "'<|eot_id|>'")
    elif isinstance(template, Plain):
        parts["START"] = "{%- set p.text = p.system + '\\n' if p.system else '' -%}"
        parts["ANSWER"] = parts["QUESTION"] = "content + '\\n'"
    else:
        raise CheckpointError(f"A {type(template).__name__} template cannot be written for others.")
    return parts


def _blocks(head: str, end: str) -> dict[str, str]:
    """For templates that write every turn alike, the system's too."""

    def block(role: str, content: str) -> str:
        return f"{_quoted(head.format(role=role))} + {content} + {end}"

    system = block("system", "p.system")
    return {
        "START": f"{{%- set p.text = {system} if p.system else '' -%}}",
        "ANSWER": block("assistant", "content"),
        "QUESTION": block("user", "content"),
        "NEXT": _quoted(head.format(role="assistant")),
    }


def _examples(template: Labelled) -> str:
    ends = {"user": template.user_end, "assistant": template.assistant_end}
    labels = {"user": template.user, "assistant": template.assistant}
    return "".join(f"{labels[role]}: {text}{ends[role]}" for role, text in template.examples)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
