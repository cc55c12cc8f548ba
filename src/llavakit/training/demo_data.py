"""From questions to rows of tokens: several questions about one picture share its tokens.

A :class:`Tree` is a trunk (system text, pictures) with branches (a question and its answer, or a
dialogue). A branch sees the trunk and itself, and its positions go on where the trunk ends, so
that every branch reads exactly as a prompt of its own. Trees are packed into rows of one length.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from llavakit.demo.copying import random_copying
from llavakit.demo.dialogue import IMAGE, Dialogue, random_system
from llavakit.demo.questions import ask
from llavakit.demo.seen import GRID, LABELS, place_labels
from llavakit.demo.several import ask_several, interleaved, plain_with_tools, schema_about
from llavakit.demo.smalltalk import random_talk
from llavakit.training.demo_model import IMAGE_TOKENS, MAX_POSITIONS
from llavakit.training.demo_pictures import Pictures

IGNORED = -100
ROW_LENGTH = 272
"""Attention costs the square of a row's length: most trees fit in a row of this, and long ones have
rows of their own."""
LONGEST_TREE = 900


@dataclass
class Tree:
    """Tokens with their branch (0 is the trunk), position and label; pictures in token order."""

    tokens: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    pictures: list[tuple[str, int]] = field(default_factory=list)
    answers: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, tokens: list[int], branch: int, start: int, task: str = "") -> int:
        """Append tokens at positions from ``start``; return the next position.

        With a ``task`` they are an answer to learn.
        """
        learnt = bool(task)
        if learnt:
            self.answers.append((task, len(self.tokens), len(self.tokens) + len(tokens)))
        self.tokens += tokens
        self.branches += [branch] * len(tokens)
        self.positions += range(start, start + len(tokens))
        self.labels += tokens if learnt else [IGNORED] * len(tokens)
        # Long answers count more than short ones, but not in proportion to their length.
        self.weights += [len(tokens) ** -0.5 if learnt else 0.0] * len(tokens)
        return start + len(tokens)


@dataclass
class Batch:
    """Packed rows: ``tokens``, ``positions``, ``labels``, ``weights`` are ``(b, l)``.

    ``answers`` says (task, row, first, end) of every answer.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    mask: torch.Tensor
    answers: list[tuple[str, int, int, int]]
    pixels: NDArray[np.uint8]
    patch_labels: torch.Tensor
    places: torch.Tensor


class Lessons:
    """Makes batches out of pictures and of nothing; the same generator makes the same batches."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        scenes: Pictures,
        pages: Pictures,
        seed: int | str,
        tasks: dict[str, float] | None = None,
    ) -> None:
        self.tasks = tasks or {}
        self.encode = tokenizer.backend_tokenizer.encode
        self.known: dict[str, list[int]] = {}
        self.image = tokenizer.convert_tokens_to_ids(IMAGE)
        self.end = tokenizer.eos_token_id
        self.start = tokenizer.bos_token_id
        self.pad = tokenizer.pad_token_id
        self.store = {"scene": scenes, "page": pages}
        self.rng = random.Random(seed)

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text; every ``<image>`` becomes as many as it has patches."""
        found: list[int] = []
        for number, piece in enumerate(text.split(IMAGE)):
            found += [self.image] * IMAGE_TOKENS if number else []
            if piece not in self.known:
                if len(self.known) > 50_000:
                    self.known.clear()
                self.known[piece] = self.encode(piece, add_special_tokens=False).ids
            found += self.known[piece]
        return found

    def choose(self, kind: str) -> tuple[str, int]:
        """Return a random picture of a kind."""
        return kind, self.rng.randrange(len(self.store[kind]))

    def grow(
        self,
        tree: Tree,
        turns: list[tuple[str, str, str]],
        branch: int,
        at: int,
        opening: str,
    ) -> None:
        """Append turns (task, question, answer) to a branch.

        ``opening`` is what the trunk lacks of ``USER: ``.
        """
        for task, question, answer in turns:
            at = tree.add(self.ids(f"{opening}{question} ASSISTANT:"), branch, at)
            at = tree.add([*self.ids(f" {answer}"), self.end], branch, at, task)
            opening = "USER: "

    def dialogue_tree(self, dialogue: Dialogue, pictures: list[tuple[str, int]]) -> Tree:
        """Return a dialogue as a tree without branches."""
        tree = Tree(pictures=pictures)
        system = f"{dialogue.system} " if dialogue.system else ""
        # Together, for the space before USER belongs to its token.
        at = tree.add([self.start, *self.ids(f"{system}USER:")], 0, 0)
        if system and self.rng.random() < 0.15:
            # As if a lot stood in between: far positions are met without long rows.
            at += self.rng.randrange(min(2500, MAX_POSITIONS - LONGEST_TREE))
        self.grow(tree, [(dialogue.task, *turn) for turn in dialogue.turns], 0, at, opening=" ")
        return tree

    def picture_tree(self, chosen: list[tuple[str, int]], questions: int) -> Tree:
        """Return pictures with questions about them, one in five of them a short dialogue."""
        rng = self.rng
        described = [self.store[kind].described(index) for kind, index in chosen]
        tree = Tree(pictures=chosen)
        system = random_system(rng)
        opening = (f"{system} " if system else "") + "USER: " + f"{IMAGE}\n" * len(chosen)
        at = tree.add([self.start, *self.ids(opening)], 0, 0)
        for branch in range(1, questions + 1):
            turns = []
            for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 3))):
                asked = (
                    ask(described[0], rng, more=self.tasks)
                    if len(chosen) == 1
                    else ask_several(described, rng)
                )
                turns.append((asked.task, asked.question, asked.answer))
            self.grow(tree, turns, branch, at, opening="")
        return tree

    def tree(self, lesson: str) -> Tree:
        """Return a random tree of a lesson; see the recipe for their names."""
        rng = self.rng
        if lesson in ("scene", "page"):
            return self.picture_tree([self.choose(lesson)], 8 if lesson == "scene" else 6)
        if lesson in ("several", "interleaved"):
            count = rng.choice((2, 2, 2, 3)) if lesson == "several" else rng.choice((1, 1, 2, 2, 3))
            scenes_only = 0.6 if rng.random() < 0.7 else 0.0
            kinds = ["scene" if rng.random() < scenes_only + 0.3 else "page" for _ in range(count)]
            chosen = [self.choose(kind) for kind in kinds]
            if lesson == "several":
                return self.picture_tree(chosen, 7)
            described = [self.store[kind].described(index) for kind, index in chosen]
            return self.dialogue_tree(interleaved(described, rng), chosen)
        if lesson in ("schema", "plain"):
            picture = self.choose("scene" if rng.random() < 0.5 else "page")
            shown = self.store[picture[0]].described(picture[1])
            dialogue = (
                schema_about(shown, rng) if lesson == "schema" else plain_with_tools(shown, rng)
            )
            return self.dialogue_tree(dialogue, [picture])
        dialogue = random_copying(rng) if lesson == "copying" else random_talk(rng)
        return self.dialogue_tree(dialogue, [])

    def batch(self, mix: dict[str, float], budget: int) -> list[Batch]:
        """Return rows with about ``budget`` tokens of trees, lessons chosen by their weights.

        The budget makes steps alike, so that parallel processes do not wait for each other. Rows
        of one length are a batch; there is one of short rows, and mostly one of long ones.
        """
        trees: list[Tree] = []
        used = 0
        while used < budget:
            tree = self.tree(self.rng.choices(list(mix), list(mix.values()))[0])
            if len(tree.tokens) <= min(LONGEST_TREE, max(budget - used + 80, ROW_LENGTH)):
                trees.append(tree)
                used += len(tree.tokens)
        trees.sort(key=lambda tree: -len(tree.tokens))
        long = [tree for tree in trees if len(tree.tokens) > ROW_LENGTH]
        short = trees[len(long) :]
        return [self.pack(part) for part in (long, short) if part]

    def pack(self, trees: list[Tree]) -> Batch:
        """Pack trees, longest first, each into the first row with room."""
        length = max(ROW_LENGTH, len(trees[0].tokens))
        rows: list[list[Tree]] = []
        for tree in trees:
            for row in rows:
                if sum(len(other.tokens) for other in row) + len(tree.tokens) <= length:
                    row.append(tree)
                    break
            else:
                rows.append([tree])
        shape = (len(rows), length)
        tokens = np.full(shape, self.pad, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        positions = np.zeros(shape, np.int64)
        owner = np.full(shape, -1, np.int64)
        branch = np.zeros(shape, np.int64)
        weights = np.zeros(shape, np.float32)
        pictures: list[tuple[str, int]] = []
        answers: list[tuple[str, int, int, int]] = []
        for r, row in enumerate(rows):
            at = 0
            for number, tree in enumerate(row):
                part = slice(at, at + len(tree.tokens))
                tokens[r, part], labels[r, part] = tree.tokens, tree.labels
                positions[r, part], branch[r, part] = tree.positions, tree.branches
                weights[r, part] = tree.weights
                owner[r, part] = number
                answers += [(task, r, at + first, at + end) for task, first, end in tree.answers]
                at = part.stop
                pictures += tree.pictures
        o, b = torch.from_numpy(owner), torch.from_numpy(branch)
        same = o[:, :, None] == o[:, None, :]
        seen = (b[:, None, :] == 0) | (b[:, :, None] == b[:, None, :])
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        pixels = [self.store[kind].pixels[index] for kind, index in pictures]
        patches = [self.store[kind].labels[index] for kind, index in pictures]
        places = [place_labels(self.store[kind].described(index)) for kind, index in pictures]
        shown = np.stack(patches) if patches else np.zeros((0, len(LABELS), GRID * GRID))
        return Batch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(positions),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(weights),
            mask=(same & seen & causal)[:, None],
            answers=answers,
            pixels=np.stack(pixels) if pixels else np.zeros((0, 128, 128, 3), np.uint8),
            patch_labels=torch.from_numpy(shown).long(),
            places=torch.tensor(places, dtype=torch.long),
        )
