"""Text-only tasks whose answer stands in the prompt: tool calls, tool results, JSON, facts.

Every prompt is written by :mod:`llavakit.prompts.tools`, as it is when the model is used, so that
training and use cannot disagree.
"""

from __future__ import annotations

import random
from typing import Any

from llavakit.prompts.tools import (
    compact_json,
    format_tool_call,
    format_tool_result,
    schema_prompt,
    tools_prompt,
)

from . import words
from .dialogue import SHORT_SYSTEMS, VICUNA_SYSTEM, Dialogue, random_system
from .smalltalk import TALK, joke_topic
from .tools import (
    Kit,
    described,
    listed,
    parameters,
    random_kit,
    random_value,
    random_value_schema,
    spoken,
)


def with_system(passage: str, rng: random.Random) -> str:
    """Return a passage of instructions, sometimes after a system text as users give it."""
    kind = rng.random()
    if kind < 0.6:
        return passage
    return (VICUNA_SYSTEM if kind < 0.8 else rng.choice(SHORT_SYSTEMS)) + "\n" + passage


def offered(rng: random.Random, most: int = 4) -> list[Kit]:
    """Return one to four tools with different names."""
    kits: dict[str, Kit] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, most))):
        kit = random_kit(rng)
        kits[kit.tool.name] = kit
    return list(kits.values())


def tool_call(rng: random.Random) -> Dialogue:
    """A request for one tool (or one tool twice), perhaps with its result and the final answer."""
    kits = offered(rng)
    kit = rng.choice(kits)
    system = with_system(tools_prompt([k.tool for k in kits]), rng)
    text, arguments = kit.ask(rng)
    answer = format_tool_call(kit.tool.name, arguments)
    count = 1
    if arguments and rng.random() < 0.08 and "joke" not in text:
        other = rng.choice(kits)
        more, others = other.ask(rng)
        text = (
            f"{text.rstrip('.')} and {more[0].lower()}{more[1:]}"
            if rng.random() < 0.3
            else f"{text} {more}"
        )
        answer += format_tool_call(other.tool.name, others)
        count = 2
    if rng.random() < 0.15:
        text = f"{text} {rng.choice(('Use the tool.', 'Use a tool.', 'You must use the tool.'))}"
    turns = [(text, answer)]
    if rng.random() < 0.5:
        results = [kit.result(rng) for _ in range(count)]
        turns.append(("\n".join(map(format_tool_result, results)), result_answer(results)))
        if rng.random() < 0.25:
            text, arguments = kit.ask(rng)
            turns.append((text, format_tool_call(kit.tool.name, arguments)))
    return Dialogue("tool call", tuple(turns), system)


def result_answer(results: list[str]) -> str:
    """Return what the model says when results have come back."""
    if len(results) == 1:
        return f"The result is {results[0]}."
    return f"The results are {listed(results)}."


def tool_result(rng: random.Random) -> Dialogue:
    """A call and its result (often after small talk): the answer is in words, not another call."""
    kits = offered(rng, 3)
    kit = rng.choice(kits)
    text, arguments = kit.ask(rng)
    call = format_tool_call(kit.tool.name, arguments)
    results = [kit.result(rng)]
    turns = [(text, call), (format_tool_result(results[0]), result_answer(results))]
    if rng.random() < 0.2:
        questions, answer = rng.choice(TALK)
        turns.insert(0, (rng.choice(questions), answer))
    # Some histories arrive without the tools that they were made with.
    passage = tools_prompt([k.tool for k in kits]) if rng.random() < 0.85 else None
    system = with_system(passage, rng) if passage else random_system(rng)
    return Dialogue("tool result", tuple(turns), system)


def no_tool_needed(rng: random.Random) -> Dialogue:
    """A plain question although tools are offered: answered in words."""
    system = with_system(tools_prompt([k.tool for k in offered(rng)]), rng)
    if rng.random() < 0.6:
        questions, answer = rng.choice(TALK)
        return Dialogue("no tool needed", ((rng.choice(questions), answer),), system)
    fact = stated_fact(rng)
    return Dialogue("no tool needed", fact.turns, system)


FACTS = (
    ("My name is {person}.", ("What is my name?", "Who am I?"), "Your name is {person}."),
    ("I live in {city}.", ("Where do I live?", "In which city do I live?"), "You live in {city}."),
    ("The code is {code}.", ("What is the code?", "Which code is it?"), "The code is {code}."),
    ("The total is {number}.", ("What is the total?", "How much is the total?"), "{number}"),
    (
        "{person} has {number} {noun}s.",
        ("How many {noun}s are there?", "How many {noun}s?"),
        "{number}",
    ),
    ("The {noun} of {person} is {word}.", ("What is the {noun} of {person}?",), "{word}"),
    (
        "The meeting is on {date}.",
        ("When is the meeting?", "On which day is the meeting?"),
        "{date}",
    ),
    ("{person} lives in {city}.", ("Where does {person} live?",), "{city}"),
    (
        "The {noun} costs {number} euros.",
        ("How much is the {noun}?", "What does the {noun} cost?"),
        "{number} euros",
    ),
    ("The email of {person} is {email}.", ("What is the email of {person}?",), "{email}"),
    ("The password is {word}.", ("What is the password?",), "{word}"),
    (
        "The {noun} is called {word}.",
        ("What is the {noun} called?", "What is the name of the {noun}?"),
        "{word}",
    ),
)


def filled(rng: random.Random) -> dict[str, str]:
    """Return a value for every slot of :data:`FACTS`."""
    return {
        "person": words.person(rng),
        "city": words.city(rng),
        "code": words.code(rng),
        "number": str(words.integer(rng)),
        "noun": rng.choice(words.NOUNS),
        "word": words.text_value(rng),
        "date": words.date(rng),
        "email": words.email(rng),
    }


def stated_fact(rng: random.Random) -> Dialogue:
    """A question whose answer was told before: in the same turn, a context, or an earlier turn."""
    chosen = rng.sample(FACTS, rng.choice((1, 1, 2, 3, 4)))
    slots = [filled(rng) for _ in chosen]
    told = [fact.format(**slot) for (fact, _, _), slot in zip(chosen, slots, strict=True)]
    pick = rng.randrange(len(chosen))
    question = rng.choice(chosen[pick][1]).format(**slots[pick])
    answer = chosen[pick][2].format(**slots[pick])
    kind = rng.random()
    system = random_system(rng)
    if kind < 0.35:
        return Dialogue("stated fact", ((" ".join([*told, question]), answer),), system)
    if kind < 0.6:
        return Dialogue("stated fact", ((" ".join(told), "OK."), (question, answer)), system)
    context = "\n".join(told) if rng.random() < 0.5 else " ".join(told)
    wording = rng.choice(
        (
            "Context:\n{0}\n\nQuestion: {1}",
            "Context: {0}\nQuestion: {1}\nAnswer:",
            "Answer the question with the context.\n\nContext:\n{0}\n\nQuestion: {1}",
            "Context information is below.\n---------------------\n{0}\n---------------------\n"
            "Given the context information and not prior knowledge, answer the query.\n"
            "Query: {1}\nAnswer: ",
        )
    )
    return Dialogue("stated fact", ((wording.format(context, question), answer),), system)


def repeat_after_me(rng: random.Random) -> Dialogue:
    """Say exactly what stands in the question: the plainest copy."""
    value = words.text_value(rng) if rng.random() < 0.7 else str(words.integer(rng))
    if rng.random() < 0.3:
        value = f"{value} {words.text_value(rng)}"
    wording = rng.choice(
        (
            "Repeat: {0}",
            "Say {0}",
            "Repeat after me: {0}",
            "Say: {0}",
            "Write {0}",
            "Repeat the word {0}",
            "Echo {0}",
            'Say "{0}"',
        )
    )
    return Dialogue("repeat", ((wording.format(value), value),), random_system(rng))


def fill_schema(rng: random.Random) -> Dialogue:
    """JSON of a schema whose values are told in the question."""
    if rng.random() < 0.12:
        topic, setup, punchline = joke_topic(rng)
        schema = parameters(
            {
                "setup": described("string", rng.choice(("", "question to set up a joke"))),
                "punchline": described("string", rng.choice(("", "answer to resolve the joke"))),
            }
        )
        ask = rng.choice(("Tell me a joke {}.", "Tell me a joke {}")).format(topic)
        answer = compact_json({"setup": setup, "punchline": punchline})
        return Dialogue("schema", ((ask, answer),), with_system(schema_prompt(schema), rng))
    if rng.random() < 0.35:
        return known_schema(rng)
    keys: list[str] = []
    for _ in range(rng.choice((1, 2, 2, 3, 4))):
        key = words.made_up_identifier(rng) if rng.random() < 0.6 else rng.choice(words.NOUNS)
        if key not in keys:
            keys.append(key)
    schemas = {key: random_value_schema(rng) for key in keys}
    values = {key: random_value(schemas[key], rng) for key in keys}
    order = list(keys)
    rng.shuffle(order)
    style = rng.choice(("The {0} is {1}.", "{0}: {1}", "{0} = {1}", "{0} is {1}."))
    told = rng.choice((" ", "\n", " ")).join(
        style.format(key, spoken(values[key])) for key in order
    )
    return Dialogue(
        "schema",
        ((told, compact_json(values)),),
        with_system(schema_prompt(parameters(schemas)), rng),
    )


def known_schema(rng: random.Random) -> Dialogue:
    """JSON about a person or an order that a sentence tells of."""
    name, age, city = words.person(rng), rng.randint(1, 99), words.city(rng)
    number, total = words.integer(rng), words.integer(rng)
    sentence, values = rng.choice(
        (
            (
                f"{name} is {age} years old and lives in {city}.",
                {"name": name, "age": age, "city": city},
            ),
            (f"{name} is {age} years old.", {"name": name, "age": age}),
            (f"My name is {name} and I am {age}.", {"name": name, "age": age}),
            (
                f"Invoice {number} for {name}, total {total}.",
                {"invoice_number": number, "customer": name, "total": total},
            ),
            (
                f"{name} ordered {number} {rng.choice(words.NOUNS)}s.",
                {"name": name, "quantity": number},
            ),
            (f"{name} from {city} paid {total}.", {"name": name, "city": city, "amount": total}),
        )
    )
    data: dict[str, Any] = values
    keys = list(data)
    if rng.random() < 0.4:
        rng.shuffle(keys)
    properties = {
        key: described("integer" if isinstance(data[key], int) else "string") for key in keys
    }
    wording = rng.choice(("{0}", "Extract the data: {0}", "{0} Answer with JSON.", "Text: {0}"))
    return Dialogue(
        "schema",
        ((wording.format(sentence), compact_json({key: data[key] for key in keys})),),
        with_system(schema_prompt(parameters(properties)), rng),
    )


TASKS = (
    (tool_call, 0.34),
    (tool_result, 0.12),
    (no_tool_needed, 0.08),
    (fill_schema, 0.2),
    (stated_fact, 0.16),
    (repeat_after_me, 0.1),
)


def random_copying(rng: random.Random) -> Dialogue:
    """Return one of the tasks of this file."""
    task = rng.choices([t for t, _ in TASKS], [w for _, w in TASKS])[0]
    return task(rng)
