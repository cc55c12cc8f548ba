"""Tools for the copying tasks: everyday ones with natural requests, and made-up ones.

A :class:`Request` is what a user asks and the call that answers it. The values never repeat
between training and test, so the only way to fill a call is to copy from the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llavakit.values import Tool

from . import words
from .smalltalk import joke_topic

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a user asks and the calls that answer it, in order."""

    text: str
    calls: tuple[tuple[str, Arguments], ...]


@dataclass(frozen=True)
class Kit:
    """A tool, a way to ask for it, and what it may give back."""

    tool: Tool
    ask: Callable[[random.Random], tuple[str, Arguments]]
    result: Callable[[random.Random], str] = field(default=lambda rng: words.text_value(rng))


def described(kind: str | dict[str, Any], description: str = "") -> dict[str, Any]:
    """Return the schema of a value, with a description unless it is empty."""
    schema: dict[str, Any] = {"type": kind} if isinstance(kind, str) else dict(kind)
    if description:
        schema = {"description": description, **schema}
    return schema


def parameters(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """Return the schema of an object as pydantic writes it; everything required by default."""
    names = list(properties) if required is None else required
    schema: dict[str, Any] = {"properties": properties}
    if names:
        schema["required"] = names
    schema["type"] = "object"
    return schema


Texts = tuple[str, ...]

EVERYDAY: tuple[tuple[Texts, Texts, tuple[tuple[str, str, str], ...], Texts], ...] = (
    (("get_weather", "weather", "get_current_weather"),
     ("Get the weather in a location.", "Get the current weather in a city.", "Weather now."),
     (("location|city|place", "string", "city"),),
     ("What is the weather in {0}?", "What's the weather in {0}?", "How is the weather in {0}?",
      "What is the weather like in {0}?", "Is it raining in {0}?", "Tell me the weather in {0}.",
      "Weather in {0}")),
    (("create_customer", "add_customer", "new_customer"),
     ("Create a customer.", "Call this tool with a customer's name to create a customer.",
      "Call this with a customer name to create them."),
     (("customer_name|name", "string", "person|chinese|other"),),
     ("Create a customer named {0}", "Create a customer named {0}.", "Add the customer {0}.",
      "Add a new customer called {0}.", "Please create a customer with the name {0}.")),
    (("magic_function", "magic_function_1", "magic"),
     ("Apply a magic function to an input.", "Applies a magic function to an input.", "Magic."),
     (("input|x|value", "integer", ""),),
     ("What is the value of {tool}({0})? Use the tool.", "What is {tool}({0})?",
      "What is the value of {tool}({0})?", "Use {tool} with {0}.", "Call {tool} on {0}.",
      "What is the value of {tool} for {0}? Use the tool.")),
    (("add", "sum", "add_numbers", "plus"),
     ("Add two numbers.", "Add two integers.", "Adds a and b.", "Add two integers together."),
     (("a|x|first", "integer", ""), ("b|y|second", "integer", "")),
     ("What is {0} plus {1}?", "What is {0} + {1}?", "Add {0} and {1}.", "Add {0} to {1}",
      "How much is {0} plus {1}?", "Calculate {0} + {1}.", "What's {0} + {1}?")),
    (("multiply", "times", "product"),
     ("Multiply two numbers.", "Multiply a by b.", "Multiplies two integers."),
     (("a|x|first", "integer", ""), ("b|y|second", "integer", "")),
     ("What is {0} times {1}?", "What is {0} * {1}?", "Multiply {0} by {1}.",
      "Multiply {0} and {1}", "Calculate {0} * {1}.", "How much is {0} times {1}?")),
    (("search", "web_search", "find_documents", "lookup"),
     ("Search for a text.", "Search the web.", "Look up documents about a query."),
     (("query|text|q", "string", "phrase"),),
     ("Search for {0}.", "Search for {0}", "Find documents about {0}.", "Look up {0}.",
      "Please search the web for {0}.", "Find {0}.")),
    (("get_invoice", "find_invoice", "lookup_invoice"),
     ("Get an invoice by its number.", "Find an invoice."),
     (("number|invoice_number|invoice_id", "integer", ""),),
     ("Show me invoice {0}.", "Get the invoice number {0}.", "Find invoice {0}",
      "I need invoice {0}.", "Open the invoice with number {0}.")),
    (("send_email", "send_message", "write_mail"),
     ("Send an email.", "Send a message to a person."),
     (("to|recipient", "string", "email|person"), ("subject|text|message", "string", "phrase")),
     ("Send an email to {0} about {1}.", "Write to {0}: {1}", "Send {0} the message {1}.",
      "Send a message to {0} with the text {1}.")),
    (("get_stock_price", "stock_price"),
     ("Get the price of a stock.", "Price of a stock now."),
     (("symbol|ticker", "string", "symbol"),),
     ("What is the price of {0}?", "What is the stock price of {0}?", "How much is {0}?",
      "Price of {0}")),
    (("set_timer", "start_timer"),
     ("Start a timer.", "Set a timer for some minutes."),
     (("minutes|duration", "integer", ""),),
     ("Set a timer for {0} minutes.", "Start a timer of {0} minutes.", "Timer for {0} minutes")),
    (("translate", "translate_text"),
     ("Translate a text.", "Translate text into a language."),
     (("text", "string", "phrase"), ("language|target", "string", "language")),
     ("Translate {0} into {1}.", "Translate {0} to {1}.", "How do you say {0} in {1}?")),
    (("book_table", "reserve_table"),
     ("Book a table.", "Reserve a table in a restaurant."),
     (("name", "string", "person"), ("people|guests", "integer", "")),
     ("Book a table for {0}, {1} people.", "Reserve a table for {1} people, name {0}.")),
    (("get_user", "find_person", "get_contact"),
     ("Find a person by name.", "Get the contact data of a person."),
     (("name|person|user", "string", "person|chinese"),),
     ("Who is {0}?", "Find {0}.", "Get the contact of {0}.", "Show me the user {0}.")),
    (("ask_image", "image_question", "ask_about_image", "look_at_picture"),
     ("Ask a question about an image.", "Answers questions about a picture, given its id."),
     (("question", "string", "question"), ("image|image_id", "string", "code")),
     ("{0} The picture is {1}.", "{0} Look at {1}.", "Ask about {1}: {0}", "Look at {1}. {0}",
      "{0} (image {1})", "In image {1}: {0}", "{0} Use image {1}.")),
    (("Joke", "tell_joke", "joke"),
     ("A joke.", "Joke to tell user.", "Tell a joke."),
     (("setup", "string", "joke"), ("punchline", "string", "joke")),
     ("Tell me a joke {0}.", "Tell me a joke {0}", "A joke {0}, please.")),
    (("get_time", "current_time", "now", "magic_function_no_args", "get_date", "list_files"),
     ("Get the time.", "Takes no arguments.", "Calculate a magic function.", "Needs no input."),
     (),
     ("What is the value of {tool}()? Use the tool.", "Use {tool}.", "Call {tool}.",
      "What does {tool} say?", "What is the value of {tool}?", "Please run {tool}.")),
)  # fmt: skip
"""Names, descriptions, arguments (names, type, kind of value) and requests of everyday tools."""

DESCRIPTIONS = {
    "integer": ("", "", "A number.", "The number to use."),
    "string": ("", "", "A text.", "The text to use."),
}
QUESTIONS = [
    "What colour is the circle?",
    "What is the total?",
    "How many shapes are there?",
    "What is the title?",
    "What is the invoice number?",
    "Describe the image.",
    "Where is the star?",
    "Read the page.",
    "What color is the square?",
    "Is there a heart?",
    "What shape is red?",
    "What is in the picture?",
]
LANGUAGES = ["English", "German", "French", "Spanish", "Italian", "Chinese", "Japanese", "Polish"]


def value_of(kind: str, rng: random.Random) -> str:
    """Return a text value of one of the kinds ``a|b``."""
    chosen = rng.choice(kind.split("|"))
    makers: dict[str, Callable[[random.Random], str]] = {
        "city": words.city,
        "person": words.person,
        "chinese": words.chinese,
        "other": words.other_script,
        "phrase": words.phrase,
        "email": words.email,
        "code": words.code,
        "language": lambda r: r.choice(LANGUAGES),
        "question": lambda r: r.choice(QUESTIONS),
        "symbol": lambda r: "".join(
            r.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(r.randint(2, 5))
        ),
    }
    if rng.random() < 0.1 and chosen not in ("language", "question"):
        return words.text_value(rng)
    return makers[chosen](rng)


def everyday_kit(rng: random.Random) -> Kit:
    """Return an everyday tool under one of its names, asked for in plain words."""
    names, descriptions, slots, requests = rng.choice(EVERYDAY)
    name = rng.choice(names)
    keys = [rng.choice(options.split("|")) for options, _, _ in slots]
    properties = {
        key: described(kind, rng.choice(DESCRIPTIONS[kind]))
        for key, (_, kind, _) in zip(keys, slots, strict=True)
    }
    tool = Tool(name, rng.choice(descriptions), parameters(properties))

    def ask(rng: random.Random) -> tuple[str, Arguments]:
        if slots and slots[0][2] == "joke":
            topic, setup, punchline = joke_topic(rng)
            text = rng.choice(requests).format(topic)
            return text, dict(zip(keys, (setup, punchline), strict=True))
        values: list[Any] = [
            words.integer(rng) if kind == "integer" else value_of(source, rng)
            for _, kind, source in slots
        ]
        text = rng.choice(requests).format(*values, tool=name)
        return text, dict(zip(keys, values, strict=True))

    return Kit(tool, ask, everyday_result)


def everyday_result(rng: random.Random) -> str:
    """Return what a tool may give back: numbers, words, weather, a name."""
    kind = rng.random()
    if kind < 0.45:
        return str(words.integer(rng))
    if kind < 0.6:
        sky = rng.choice(("sunny", "cloudy", "rainy", "windy", "snow", "fog"))
        return rng.choice(
            (sky, f"{sky}, {rng.randint(-9, 39)} degrees", f"{rng.randint(0, 40)} °C")
        )
    if kind < 0.7:
        return rng.choice((f"{words.person(rng)} created", "ok", "done", "true", "sent", "false"))
    if kind < 0.75:
        return str(words.decimal(rng))
    return words.text_value(rng)


def made_up_kit(rng: random.Random) -> Kit:
    """Return a tool that exists nowhere with up to three arguments, asked for by its name."""
    name = words.made_up_identifier(rng)
    count = rng.choice((0, 1, 1, 1, 1, 2, 2, 2, 3))
    keys: list[str] = []
    while len(keys) < count:
        key = words.made_up_identifier(rng) if rng.random() < 0.35 else words.made_up_word(rng)
        key = rng.choice(words.NOUNS) if rng.random() < 0.35 else key
        if key not in keys:
            keys.append(key)
    schemas = {key: random_value_schema(rng) for key in keys}
    optional = [key for key in keys[1:] if rng.random() < 0.25]
    required = [key for key in keys if key not in optional]
    description = rng.choice(
        ("", words.phrase(rng).capitalize() + ".", f"Tool for {words.phrase(rng)}.")
    )
    tool = Tool(name, description, parameters(schemas, required))

    def ask(rng: random.Random) -> tuple[str, Arguments]:
        given = [key for key in keys if key not in optional or rng.random() < 0.6]
        values = {key: random_value(schemas[key], rng) for key in given}
        if not values:
            return rng.choice(
                ("Use {0}.", "Call {0}.", "Run {0} please.", "Please use {0}.")
            ).format(name), {}
        if len(values) == 1 and rng.random() < 0.7:
            wording = rng.choice(
                (
                    "Use {0} with {1}.",
                    "Call {0} with {1}.",
                    "Please call {0} on {1}.",
                    "What is the value of {0}({1})? Use the tool.",
                    "Run {0} for {1}.",
                    "What does {0} say about {1}?",
                    "{0} {1}",
                )
            )
            return wording.format(name, spoken(next(iter(values.values())))), values
        parts = [f"{key} {spoken(value)}" for key, value in values.items()]
        if rng.random() < 0.3:
            parts = [f"{key}={spoken(value)}" for key, value in values.items()]
        wording = rng.choice(
            ("Use {0} with {1}.", "Call {0} with {1}.", "Please use {0} with {1}.")
        )
        return wording.format(name, listed(parts)), values

    return Kit(tool, ask, everyday_result)


def random_value_schema(rng: random.Random) -> dict[str, Any]:
    """Return the schema of a value, mostly a string or an integer."""
    description = rng.choice(("", "", "", words.phrase(rng).capitalize() + "."))
    kind = rng.random()
    if kind < 0.42:
        return described("string", description)
    if kind < 0.76:
        return described("integer", description)
    if kind < 0.84:
        return described("number", description)
    if kind < 0.9:
        return described("boolean", description)
    if kind < 0.95:
        options = [words.made_up_word(rng) for _ in range(rng.randint(2, 4))]
        return described({"enum": options, "type": "string"}, description)
    return described({"items": {"type": "string"}, "type": "array"}, description)


def random_value(schema: dict[str, Any], rng: random.Random) -> Any:
    """Return a value that obeys a schema of :func:`random_value_schema`."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema["type"]
    if kind == "integer":
        return words.integer(rng)
    if kind == "number":
        return words.decimal(rng)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        return [words.made_up_word(rng) for _ in range(rng.randint(1, 3))]
    return words.text_value(rng)


def spoken(value: Any) -> str:
    """Return a value as a user writes it in a sentence."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return listed([str(item) for item in value])
    return str(value)


def listed(parts: list[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def random_kit(rng: random.Random) -> Kit:
    """Return an everyday or a made-up tool, evenly."""
    return everyday_kit(rng) if rng.random() < 0.5 else made_up_kit(rng)
