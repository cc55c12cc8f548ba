"""Training data looked through before anything is trained: counts, and faults by their lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from llavakit.errors import (
    DataError,
    ImageError,
    LlavaKitError,
    ParameterError,
    SourceNotFoundError,
)
from llavakit.model.layout import Size
from llavakit.training.data import (
    ACCEPTABLE,
    KINDS,
    FaultyRecord,
    Record,
    conversation_of,
)
from llavakit.training.data_files import Place, Records, Unread
from llavakit.training.examples import Encoder, picture_size
from llavakit.training.sharing import ALONE, Beginning, beginning

T = TypeVar("T")

SHOWN = 20
"""How many faults a message names."""

_AHEAD = 256


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one record.

    Attributes:
        place: where it stands.
        kind: one of :data:`~llavakit.training.data.KINDS`.
        text: what exactly.
    """

    place: Place
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}: {self.text}"


def fault_lines(faults: Sequence[Fault], shown: int = SHOWN) -> Iterator[str]:
    """Faults for people: how many of each kind, and the first ``shown`` by their lines."""
    if not faults:
        return
    yield f"{len(faults):,} records have faults:"
    counts = Counter(fault.kind for fault in faults)
    yield from (f"  {count:,} {kind} ({KINDS[kind]})" for kind, count in counts.items())
    yield from (f"  {fault}" for fault in faults[:shown])
    if len(faults) > shown:
        yield f"  and {len(faults) - shown:,} more"


class FaultReport:
    """A report on data that may have faults; its ``lines()`` are for people.

    Attributes:
        faults: what is wrong, in the order of the records.
    """

    __slots__ = ()
    faults: tuple[Fault, ...]

    def lines(self) -> Iterator[str]:
        """Return the report for people."""
        return fault_lines(self.faults)

    def refuse_faults(self) -> None:
        """Let only data pass that is free of faults.

        Raises:
            DataError: there are faults; its message is the report.
        """
        if self.faults:
            raise DataError("\n".join(self.lines()))


@dataclass(frozen=True, slots=True)
class Report(FaultReport):
    """What was found.

    Attributes:
        name: the source.
        records: how many records there are.
        faults: of the records that cannot be used, in their order.
        accepted: how often each fault was met that was accepted.
        good: indices of the records that can be used.
        lengths: tokens of each of those; negative for those without images, 0 where no
            model was named.
        beginnings: how each of those begins.
        pictures: how many images they have.
        answers: how many answers they have.
    """

    name: str
    records: int
    faults: tuple[Fault, ...]
    accepted: Counter[str]
    good: tuple[int, ...]
    lengths: tuple[int, ...]
    beginnings: tuple[Beginning, ...]
    pictures: int
    answers: int

    @property
    def shareable(self) -> int:
        """How many tokens are there again and again, and could be shared."""
        keys = Counter(one.key for one in self.beginnings if one.key)
        tokens = {one.key: one.tokens for one in self.beginnings}
        return sum((count - 1) * tokens[key] for key, count in keys.items())

    def lines(self, shown: int = SHOWN) -> Iterator[str]:
        """The report for people, the first ``shown`` faults by their lines."""
        seen = sum(length > 0 for length in self.lengths)
        tokens = [abs(length) for length in self.lengths if length]
        summary = f"{self.name}: {self.records:,} records, {len(self.good):,} of them usable, with "
        summary += f"{self.pictures:,} images and {self.answers:,} answers."
        if tokens:
            summary += f" {sum(tokens):,} tokens, {max(tokens):,} in the longest; "
            summary += f"{seen:,} records have images."
        yield summary
        shareable = self.shareable
        if shareable * 10 > sum(tokens):
            yield (
                "Several records are about the same images: learnt together (share_images), "
                f"they have {sum(tokens) - shareable:,} tokens."
            )
        for kind, count in self.accepted.items():
            yield f"Accepted: {count:,} {kind} ({KINDS[kind]})."
        yield from fault_lines(self.faults, shown)


@dataclass(frozen=True, slots=True)
class _Looked:
    conversation: Record | None
    length: int = 0
    begins: Beginning = ALONE
    faults: tuple[tuple[str, str], ...] = ()


def check(
    records: Records,
    *,
    images: Path | None = None,
    encoder: Encoder | None = None,
    accept: Collection[str] = (),
    decode: bool = True,
    workers: int = 4,
    progress: Callable[[int], object] = lambda done: None,
) -> Report:
    """Look through all records.

    Args:
        records: the data.
        images: where relative paths of images begin; None is beside the file.
        encoder: of the checkpoint that shall be trained; None leaves lengths unchecked. It
            cuts if ``over-length`` is accepted.
        accept: faults to live with, out of :data:`~llavakit.training.data.ACCEPTABLE`.
        decode: whether images are decoded as a whole; else only their heads are read.
        workers: threads that open images.
        progress: is called with the number of records that are done.

    Raises:
        ParameterError: a fault that cannot be accepted.
    """
    check_accepted(accept)
    if encoder is not None:
        encoder = replace(encoder, cut="over-length" in accept)
    folder = images if images is not None else records.folder
    seen: set[str] = set()
    faults: list[Fault] = []
    accepted: Counter[str] = Counter()
    good: list[tuple[int, int, Beginning]] = []
    pictures = answers = 0

    def look(index: int) -> _Looked:
        return _look(records[index], folder, encoder, decode)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for index, found in enumerate(in_order(pool, look, len(records))):
            kinds = list(found.faults)
            name = found.conversation.id if found.conversation else None
            if name is not None and name in seen:
                kinds.append(("duplicate-id", f"the id {name!r} was there before"))
            if name is not None:
                seen.add(name)
            bad = [one for one in kinds if one[0] not in accept]
            accepted.update(kind for kind, _ in kinds if kind in accept)
            progress(index + 1)
            if bad:
                faults.append(Fault(records.places[index], *bad[0]))
            elif found.conversation is not None:
                good.append((index, found.length, found.begins))
                pictures += len(found.conversation.pictures)
                answers += found.conversation.answers
    return Report(
        name=records.name,
        records=len(records),
        faults=tuple(faults),
        accepted=accepted,
        good=tuple(index for index, _, _ in good),
        lengths=tuple(length for _, length, _ in good),
        beginnings=tuple(begins for _, _, begins in good),
        pictures=pictures,
        answers=answers,
    )


def check_accepted(accept: Collection[str]) -> None:
    """Raise a ``ParameterError`` for faults that cannot be accepted."""
    wrong = sorted(set(accept) - set(ACCEPTABLE))
    if wrong:
        raise ParameterError(
            f"The fault {wrong[0]!r} cannot be accepted; only {', '.join(ACCEPTABLE)} can. "
            "skip_faulty leaves out records of all others."
        )


def in_order(pool: ThreadPoolExecutor, look: Callable[[int], T], count: int) -> Iterator[T]:
    """What ``look`` finds, in order; only so many records are in memory at once."""
    indices = iter(range(count))
    waiting = [pool.submit(look, index) for index in islice(indices, _AHEAD)]
    while waiting:
        yield waiting.pop(0).result()
        waiting += [pool.submit(look, index) for index in islice(indices, 1)]


def _look(record: object, folder: Path | None, encoder: Encoder | None, decode: bool) -> _Looked:
    """One record; its faults, those that might be accepted among them."""
    if isinstance(record, Unread):
        return _Looked(None, faults=(("malformed", record.why),))
    first: tuple[tuple[str, str], ...] = ()
    try:
        conversation = conversation_of(record, folder, assistant_first=True)
        if next(t for t in conversation.turns if t.role != "system").role == "assistant":
            first = (("assistant-first", "the assistant begins, without a question"),)
    except FaultyRecord as fault:
        return _Looked(None, faults=((fault.kind, fault.text),))
    try:
        sizes = _sizes(conversation, decode)
        if encoder is None:
            return _Looked(conversation, faults=first)
        made, cut = encoder.measured(conversation, sizes)
        begins = beginning(made, encoder.reader.tokenizer.image_id, conversation.pictures)
    except FaultyRecord as fault:
        return _Looked(conversation, faults=(*first, (fault.kind, fault.text)))
    except ImageError as error:  # no layout has a place for it
        return _Looked(conversation, faults=(*first, ("unreadable-image", str(error))))
    length = len(made.ids)
    if cut:
        first += (("over-length", f"it was cut to {length} tokens"),)
    return _Looked(conversation, length if sizes else -length, begins, first)


def _sizes(conversation: Record, decode: bool) -> Sequence[Size]:
    sizes: list[Size] = []
    for image in conversation.pictures:
        try:
            sizes.append(picture_size(image, decode=decode))
        except SourceNotFoundError as error:
            raise FaultyRecord("missing-image", str(error)) from error
        except LlavaKitError as error:
            raise FaultyRecord("unreadable-image", str(error)) from error
    return sizes
