"""Plain questions without a picture: greetings, thanks, who are you, a joke, no picture given."""

from __future__ import annotations

import random

from .dialogue import Dialogue, random_system

NO_PICTURE = "I cannot see a picture. Please add one."

TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Good morning", "Hey", "hello", "hi"),
     "Hello! How can I help you?"),
    (("Who are you?", "What are you?", "What is your name?", "What model are you?",
      "Tell me about yourself."),
     "I am a tiny demo model that answers questions about shapes and small pages."),
    (("What can you do?", "How can you help me?", "Help", "What can I ask you?"),
     "I can describe simple pictures, count shapes and read small pages."),
    (("Thanks", "Thank you", "Thank you!", "Thanks!", "Thanks a lot"), "You are welcome."),
    (("How are you?", "How are you today?", "How do you do?"), "I am fine, thank you."),
    (("Bye", "Goodbye", "Good bye!", "See you"), "Goodbye!"),
    (("Are you a robot?", "Are you a human?", "Are you a person?"), "I am a small language model."),
    (("Say something.", "Tell me something."), "I like circles and squares."),
    (("Yes", "OK", "Okay", "Good", "Great", "Nice"), "Good. What else can I do for you?"),
    (("What is the capital of France?", "What is the capital of Germany?", "What is love?",
      "Who won the game?", "What time is it?", "Write a poem.", "What is the meaning of life?",
      "How old is the moon?"),
     "I do not know. I am only a tiny demo model."),
    (("What is a circle?",), "A circle is a round shape."),
    (("What is a square?",), "A square is a shape with four equal sides."),
    (("What is a triangle?",), "A triangle is a shape with three sides."),
    (("What is an invoice?",), "An invoice is a page that asks for money."),
    (("What colours do you know?", "Which colors do you know?"),
     "Red, orange, yellow, green, blue, purple, pink, brown, black, white and gray."),
    (("What shapes do you know?", "Which shapes do you know?"),
     "Circles, squares, triangles, rectangles, stars, diamonds, hearts and crosses."),
)  # fmt: skip

JOKES: dict[str, tuple[str, str]] = {
    "cat": ("Why did the cat sit on the computer?", "To keep an eye on the mouse."),
    "dog": ("Why did the dog sit in the shade?", "It did not want to be a hot dog."),
    "computer": ("Why was the computer cold?", "It left its windows open."),
    "fish": ("Why are fish so smart?", "They live in schools."),
    "bear": ("What do you call a bear with no teeth?", "A gummy bear."),
    "circle": ("Why is a circle so hot?", "It has 360 degrees."),
    "bird": ("Why do birds fly south?", "It is too far to walk."),
    "parrot": ("What do you call a clever parrot?", "A polygon."),
}
PICTURE_QUESTIONS = (
    "What colour is the circle?",
    "What color is the square?",
    "What is in this picture?",
    "What is in this image?",
    "Describe this image.",
    "Describe the picture.",
    "Describe this image",
    "How many shapes are there?",
    "Read the page.",
    "What is the title?",
    "What is shown in the image?",
    "What do you see?",
    "Is there a red circle in the picture?",
    "Where is the star?",
)


def joke_topic(rng: random.Random) -> tuple[str, str, str]:
    """Return a topic as people write it, and the joke's two halves."""
    topic = rng.choice(tuple(JOKES))
    plural = topic if topic == "fish" else topic + "s"
    written = rng.choice((f"about {plural}", f"about a {topic}", f"about {plural}"))
    return written, *JOKES[topic]


def random_talk(rng: random.Random) -> Dialogue:
    """Return a question of small talk, a joke, or a picture question without a picture."""
    kind = rng.random()
    if kind < 0.6:
        questions, answer = rng.choice(TALK)
        turns = [(rng.choice(questions), answer)]
        if rng.random() < 0.2:
            questions, answer = rng.choice(TALK)
            turns.append((rng.choice(questions), answer))
        return Dialogue("small talk", tuple(turns), random_system(rng))
    if kind < 0.8:
        topic, setup, punchline = joke_topic(rng)
        ask = rng.choice(("Tell me a joke {}.", "Tell me a joke {}", "Do you know a joke {}?"))
        return Dialogue("small talk", ((ask.format(topic), f"{setup} {punchline}"),))
    question = rng.choice(PICTURE_QUESTIONS)
    return Dialogue("no picture", ((question, NO_PICTURE),), random_system(rng))
