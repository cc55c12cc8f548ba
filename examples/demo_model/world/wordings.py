"""The wordings of every question about one picture, a line each.

A line that stands twice is asked twice as often.

``{c}`` is *color* or *colour*, ``{p}`` a word for a picture, ``{s}`` a shape, ``{k}`` a colour,
``{a}`` and ``{b}`` things in the picture, ``{r}`` a relation, ``{w}`` a word for the page.
"""

from __future__ import annotations


def lines(text: str) -> tuple[str, ...]:
    """Return the lines of a block."""
    return tuple(line.strip() for line in text.strip().splitlines())


DESCRIBE = lines("""
    Describe this {p}.
    Describe the {p}.
    What is in this {p}?
    What is in the {p}?
    What do you see?
    What can you see in this {p}?
    What is shown in this {p}?
    Describe this {p}
    What does the {p} show?
    What is this?
    What's in this {p}?
    Please describe the {p}.
    Can you describe this {p}?
    Describe what you see.
    Describe the {p} in detail.
    Describe this {p} in detail.
    Write a caption for this {p}.
    What's in the {p}?
    What is shown in the {p}?
    What is on this {p}?
    Caption this {p}.
""")
COLOUR = lines("""
    What {c} is the {s}?
    What {c} is the {s}?
    Which {c} does the {s} have?
    What is the {c} of the {s}?
    Which {c} is the {s}?
    What {c} does the {s} have?
    Tell me the {c} of the {s}.
    What {c} is the {s} in the {p}?
""")
SHAPE = lines("""
    What shape is {k}?
    Which shape is {k}?
    What is the {k} shape?
    What {k} shape is there?
    What is {k}?
    What kind of shape is the {k} one?
    What shape is the {k} object?
    Which shape is {k} in the {p}?
""")
SHAPE_OF_THE_ONLY = lines("""
    What shape is it?
    What shape is this?
    Which shape is this?
    What shape is shown?
    What shape is in the {p}?
    Which shape is shown in the {p}?
    What shape do you see?
""")
COUNT_ALL = lines("""
    How many shapes are there?
    How many shapes are in the {p}?
    How many shapes do you see?
    Count the shapes.
    How many objects are there?
    How many objects are in the {p}?
    How many shapes are in this {p}?
    How many shapes?
    How many shapes can you see?
    What is the number of shapes?
""")
COUNT_COLOUR = lines("""
    How many {k} shapes are there?
    How many {k} shapes do you see?
    How many shapes are {k}?
    Count the {k} shapes.
    How many {k} objects are there?
    How many {k} shapes are in the {p}?
""")
COUNT_SHAPE = lines("""
    How many {s} are there?
    How many {s} do you see?
    Count the {s}.
    How many {s} are in the {p}?
    How many {s}?
    How many {s} can you see?
    How many {s} are in this {p}?
""")
WHERE = lines("""
    Where is the {s}?
    Where is the {s}?
    Where is the {s} in the {p}?
    In which part of the {p} is the {s}?
    What is the position of the {s}?
    Where do you see the {s}?
""")
WHAT_IS_AT = lines("""
    What is {a}?
    Which shape is {a}?
    What is {a} of the {p}?
    What do you see {a}?
""")
LIST = lines("""
    List the shapes.
    Which shapes are there?
    What shapes are there?
    What shapes do you see?
    Which shapes are in the {p}?
    List all shapes in the {p}.
    Name the shapes.
""")
BACKGROUND = lines("""
    What {c} is the background?
    Which {c} does the background have?
    What is the {c} of the background?
    What is the background {c}?
""")
ABSENT = lines("""
    What {c} is the {s}?
    Which {c} does the {s} have?
    Where is the {s}?
    What is the {c} of the {s}?
""")
EXISTS = lines("""
    Is there {a}?
    Is there {a} in the {p}?
    Do you see {a}?
    Is there {a} in this {p}?
    Can you see {a}?
    Does the {p} show {a}?
    Is {a} in the {p}?
    Does the {p} contain {a}?
""")
LEFT_OR_RIGHT = lines("""
    Is the {a} left or right of the {b}?
    Is the {a} to the left or to the right of the {b}?
    On which side of the {b} is the {a}?
""")
ABOVE_OR_BELOW = lines("""
    Is the {a} above or below the {b}?
    Is the {a} over or under the {b}?
    Is the {a} higher or lower than the {b}?
""")
ONE_AS_JSON = lines("""
    Describe the shape as JSON.
    Describe the {p} as JSON.
    Answer with JSON: color and shape.
    Give me the shape as JSON.
    Return JSON with color and shape.
""")
NAMED_AS_JSON = lines("""
    Describe the {s} as JSON.
    Give me the {s} as JSON.
""")
ALL_AS_JSON = lines("""
    List the shapes as JSON.
    Describe the {p} as JSON.
    Return all shapes as JSON.
    Give me the shapes as JSON.
""")
KIND_OF_PICTURE = lines("""
    What kind of {p} is this?
    What type of {p} is this?
    Is this a drawing or a page?
    Is this a page or a drawing?
""")
TITLE = lines("""
    What is the title?
    What is the title of the page?
    What is the title of this page?
    What is the heading?
    Read the title.
    What is the title of the document?
    Which title does the page have?
    What is the title of this document?
""")
NUMBER = lines("""
    What is the {w} number?
    What is the {w} number?
    What is the number?
    What is the number of the {w}?
    Which number does the {w} have?
    What is the No.?
    Read the {w} number.
    What number is on the page?
    What is the {w} No.?
""")
TOTAL = lines("""
    What is the total?
    What is the total?
    What is the total amount?
    How much is the total?
    How much is it?
    What is the total of the {w}?
    Read the total.
    What is the amount?
    How much is the {w}?
    What total is on the page?
""")
NAME = lines("""
    What is the name?
    What name is on the page?
    Which name is on the page?
    Whose name is printed?
    What is the name on the page?
    Who is named on the page?
    What is the name of the customer?
    Who is the customer?
""")
PAGE_NUMBER = lines("""
    What is the page number?
    Which page is this?
    What page is this?
    What page number is printed?
""")
READ_ALL = lines("""
    Read the page.
    Read the page.
    Read the text.
    What does the page say?
    What is written on the page?
    Read all the text.
    What text is on the page?
    Transcribe the page.
    Read this document.
    What is written here?
    Extract the text.
    Read the document.
    Transcribe the text in this {p}.
    Extract all text from the {p}.
    What does it say?
    OCR
""")
PAGE_AS_JSON = lines("""
    Read the page as JSON.
    Give me the page as JSON.
    Return the fields as JSON.
    Extract the fields as JSON.
    Describe the page as JSON.
    Extract the data as JSON.
    Answer with JSON: all fields of the page.
""")
IS_IT = lines("""
    Is this {a}?
    Is this page {a}?
    Is it {a}?
    Is the document {a}?
""")
KIND_OF_DOCUMENT = lines("""
    What kind of document is this?
    What kind of page is this?
    What document is this?
    What type of document is this?
""")
SHAPE_ON_PAGE = lines("""
    What {c} is the {s}?
    Where is the {s}?
""")
ABSENT_NAME = lines("""
    What is the name?
    What name is on the page?
    Who is the customer?
""")
NAMED_ON_PAGE = lines("""
    Is the name {n} on the page?
    Is {n} named on the page?
""")
