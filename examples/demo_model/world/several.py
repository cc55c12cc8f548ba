"""Several pictures in one prompt, pictures between words, and pictures with a schema or a tool."""

from __future__ import annotations

import random
from typing import Any

from llavakit.prompts.tools import compact_json, format_tool_call, schema_prompt, tools_prompt
from llavakit.values import Tool

from . import words
from .asked import Asked, caption, with_article
from .copying import offered, with_system
from .dialogue import IMAGE, Dialogue, random_system
from .pages import Page
from .questions import ask
from .scene_questions import unique
from .scenes import COLOURS, SHAPES, Scene
from .tools import described, parameters

Picture = Scene | Page
ORDINALS = ("first", "second", "third", "fourth")
PICTURE_WORDS = ("image", "picture", "photo", "drawing")


def pointed(asked: Asked, index: int, picture: Picture, rng: random.Random) -> Asked:
    """Return a question about one picture as a question about picture ``index`` of several."""
    question = asked.question
    word = rng.choice(
        ("image", "image", "picture", *(("page",) if isinstance(picture, Page) else ()))
    )
    name = f"{ORDINALS[index]} {word}"
    plain = not any(
        w in question.lower() for w in (*PICTURE_WORDS, "page", "document", "\n", "this", "answer")
    )
    if plain and question.endswith("?") and rng.random() < 0.6:
        question = f"{question[:-1]} {rng.choice(('in', 'in', 'on'))} the {name}?"
    else:
        lowered = question if question[:2].isupper() else question[0].lower() + question[1:]
        question = rng.choice(
            (
                f"In the {name}, {lowered}",
                f"Look at the {name}. {question}",
                f"Image {index + 1}: {question}",
                f"In the {name}: {question}",
            )
        )
    return Asked(asked.task, question, asked.answer)


def ask_several(pictures: list[Picture], rng: random.Random) -> Asked:
    """Return a question about two to four pictures; its task begins with ``several``."""
    index = rng.randrange(len(pictures))
    picture = pictures[index]
    word = rng.choice(("image", "image", "picture"))
    kind = rng.random()
    if kind < 0.30:
        which = ask_which(pictures, index, word, rng)
        if which is not None:
            return which
    if kind < 0.50:
        question = rng.choice(
            (
                f"Describe the {ORDINALS[index]} {word}.",
                f"What is in the {ORDINALS[index]} {word}?",
                f"Describe {word} {index + 1}.",
                f"What does the {ORDINALS[index]} {word} show?",
                f"What is shown in the {ORDINALS[index]} {word}?",
            )
        )
        return Asked("several describe", question, caption(picture))
    if kind < 0.53:
        question = rng.choice(
            (
                f"How many {word}s are there?",
                f"How many {word}s do you see?",
                f"How many {word}s did I send?",
            )
        )
        return Asked("several count", question, str(len(pictures)))
    if kind < 0.60 and sum(len(p.shapes) if isinstance(p, Scene) else 1 for p in pictures) < 8:
        question = rng.choice(
            (
                f"Describe the {word}s.",
                f"Describe both {word}s." if len(pictures) == 2 else f"Describe all {word}s.",
                f"What is in the {word}s?",
                f"Describe each {word}.",
                f"What do the {word}s show?",
            )
        )
        answer = "\n".join(f"{number}: {caption(p)}" for number, p in enumerate(pictures, 1))
        return Asked("several describe all", question, answer)
    asked = ask(picture, rng)
    if asked.task == "kind":
        asked = ask(picture, rng, "caption" if isinstance(picture, Scene) else "title")
    return Asked(
        f"several {asked.task}", pointed(asked, index, picture, rng).question, asked.answer
    )


def ask_which(pictures: list[Picture], index: int, word: str, rng: random.Random) -> Asked | None:
    """Ask which picture shows something that only picture ``index`` shows."""
    picture = pictures[index]
    others = [p for i, p in enumerate(pictures) if i != index]
    if isinstance(picture, Page):
        kind = rng.random()
        if kind < 0.35 and all(isinstance(p, Scene) or p.title != picture.title for p in others):
            what = rng.choice(
                (f"has the title {picture.title}", f"is {with_article(picture.title.lower())}")
            )
        elif kind < 0.7 and all(isinstance(p, Scene) or p.number != picture.number for p in others):
            what = rng.choice(
                (f"has the number {picture.number}", f"shows the number {picture.number}")
            )
        elif all(isinstance(p, Scene) for p in others):
            what = rng.choice(("is a page", "shows a page", "is a document"))
        else:
            return None
    else:
        if not picture.shapes:
            return None
        shape = rng.choice(picture.shapes)
        other_shapes = [s for p in others if isinstance(p, Scene) for s in p.shapes]
        if rng.random() < 0.5 and all(s.kind != shape.kind for s in other_shapes):
            name = shape.kind
        elif all(s.name != shape.name for s in other_shapes):
            name = shape.name
        else:
            return None
        what = rng.choice(("shows {}", "has {}", "contains {}")).format(with_article(name))
    wording = rng.choice((f"Which {word} {what}?", f"Which {word} {what}?", f"Which one {what}?"))
    return Asked("several which", wording, f"the {ORDINALS[index]} image")


def interleaved(pictures: list[Picture], rng: random.Random) -> Dialogue:
    """A dialogue whose pictures stand after the words, between them, or in turns of their own."""
    kind = rng.random()
    if len(pictures) == 1:
        asked = ask(pictures[0], rng)
        question = rng.choice(
            (
                f"{asked.question}{IMAGE}\n",
                f"{asked.question}\n{IMAGE}\n",
                f"{asked.question} {IMAGE}\n",
                f"Look at this picture: {IMAGE}\n{asked.question}",
                f"Here is a picture.\n{IMAGE}\n{asked.question}",
                f"Image: {IMAGE}\nQuestion: {asked.question}",
                f"{words.code(rng)}:\n{IMAGE}\n{asked.question}",
            )
        )
        return Dialogue(asked.task, ((question, asked.answer),), random_system(rng))
    if kind < 0.4:
        turns = []
        for picture in pictures:
            asked = ask(picture, rng)
            turns.append((f"{IMAGE}\n{asked.question}", asked.answer))
        if rng.random() < 0.5:
            last = ask_several(pictures, rng)
            turns.append((last.question, last.answer))
        return Dialogue("several turns", tuple(turns), random_system(rng))
    asked = ask_several(pictures, rng)
    if kind < 0.75:
        label = rng.choice(
            (
                "Image {0}:",
                "Image {0}: ",
                "Picture {0}:\n",
                "[{0}]",
                "Page {0}:\n",
                "Image {0}:\n",
                "file_path: {1}\n",
                "{1} page {0}:\n",
            )
        )
        shown = "".join(
            f"{label.format(n, words.code(rng))}{IMAGE}\n" for n in range(1, len(pictures) + 1)
        )
        question = f"{shown}{asked.question}"
    else:
        question = f"{asked.question}{rng.choice(('', ' ', chr(10)))}" + f"{IMAGE}\n" * len(
            pictures
        )
    return Dialogue(asked.task, ((question, asked.answer),), random_system(rng))


def known_fields(picture: Picture, rng: random.Random) -> list[tuple[tuple[str, ...], str, Any]]:
    """Return (usual names, description, value) of everything that can be asked for as a field."""
    if isinstance(picture, Page):
        fields: list[tuple[tuple[str, ...], str, Any]] = [
            (("title", "heading", "document_title"), "the title", picture.title),
            (("number", "invoice_number", "document_number"), "the number", picture.number),
            (("total", "amount", "total_amount"), "the total", picture.total),
        ]
        if picture.name is not None:
            fields.append((("name", "customer", "customer_name"), "the name", picture.name))
        if picture.page is not None:
            fields.append((("page", "page_number"), "the page number", picture.page))
        return fields
    fields = [
        (
            ("count", "number_of_shapes", "shapes", "shape_count"),
            "how many shapes there are",
            len(picture.shapes),
        ),
        (("description", "caption"), "what is in the picture", caption(picture)),
    ]
    kind, colour = rng.choice(SHAPES), rng.choice(tuple(COLOURS))
    fields.append(
        (
            (f"has_{kind}",),
            f"whether there is a {kind}",
            any(s.kind == kind for s in picture.shapes),
        )
    )
    fields.append(
        (
            (f"{colour}_shapes",),
            f"how many shapes are {colour}",
            sum(s.colour == colour for s in picture.shapes),
        )
    )
    if len(picture.shapes) == 1:
        shape = picture.shapes[0]
        fields += [(("color", "colour", "shape_color"), "the color of the shape", shape.colour)] * 2
        fields += [(("shape", "kind", "shape_type"), "the shape", shape.kind)] * 2
    else:
        for shape in unique(picture)[0][:2]:
            fields.append(
                (
                    (f"{shape.kind}_color", f"{shape.kind}_colour"),
                    f"the color of the {shape.kind}",
                    shape.colour,
                )
            )
    return fields


def chosen_fields(picture: Picture, rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of some fields of a picture, and their values in the same order."""
    fields = known_fields(picture, rng)
    properties: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for names, description, value in rng.sample(fields, rng.randint(1, min(4, len(fields)))):
        made_up = rng.random() < 0.2
        key = words.made_up_identifier(rng) if made_up else rng.choice(names)
        if key in values or (description, value) in [
            (p.get("description"), v)
            for p, v in zip(properties.values(), values.values(), strict=True)
        ]:
            continue
        kind = {bool: "boolean", int: "integer", str: "string"}[type(value)]
        if kind == "integer" and rng.random() < 0.12:
            kind, value = "string", str(value)
        told = made_up or rng.random() < 0.3
        properties[key] = described(
            kind,
            rng.choice((description, description + ".", description.capitalize())) if told else "",
        )
        values[key] = value
    return parameters(properties), values


def schema_about(picture: Picture, rng: random.Random) -> Dialogue:
    """JSON of a schema, or a tool's arguments, read from a picture."""
    schema, values = chosen_fields(picture, rng)
    what = "page" if isinstance(picture, Page) else "picture"
    if rng.random() < 0.25:
        name = rng.choice((words.made_up_identifier(rng), f"save_{what}", f"store_{what}"))
        tool = Tool(
            name, rng.choice((f"Save a {what}.", f"Store the data of a {what}.", "")), schema
        )
        question = rng.choice(
            (
                f"Use {name} for this {what}.",
                f"Call {name} with the data of the {what}.",
                f"Use {name}.",
                f"Save this {what}."
                if name.startswith("save")
                else f"Please use {name} on this {what}.",
            )
        )
        answer = format_tool_call(name, values)
        system = with_system(tools_prompt([tool]), rng)
        return Dialogue("picture tool", ((f"{IMAGE}\n{question}", answer),), system)
    question = rng.choice(
        (
            "Extract the data.",
            "Extract the fields.",
            f"Describe the {what}.",
            f"What is in this {what}?",
            f"Read the {what}.",
            "Fill in the fields.",
            f"Answer with JSON about the {what}.",
            f"Extract the data from this {what}.",
            "Describe this image.",
            "What do you see?",
            "Extract the information.",
        )
    )
    system = with_system(schema_prompt(schema), rng)
    return Dialogue("picture schema", ((f"{IMAGE}\n{question}", compact_json(values)),), system)


def plain_with_tools(picture: Picture, rng: random.Random) -> Dialogue:
    """A question about a picture although tools are offered: answered in words."""
    asked = ask(picture, rng)
    system = with_system(tools_prompt([kit.tool for kit in offered(rng, 2)]), rng)
    return Dialogue("no tool needed", ((f"{IMAGE}\n{asked.question}", asked.answer),), system)
