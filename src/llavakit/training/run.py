"""A run of training from its settings to the directory that is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llavakit.errors import CheckpointError, LlavaKitError, ParameterError
from llavakit.model.adapter import TRAINING
from llavakit.model.json_files import read_json
from llavakit.training.batches import Examples, batches
from llavakit.training.config import TrainConfig
from llavakit.training.data_check import Report, check
from llavakit.training.data_files import Records, open_records
from llavakit.training.examples import Encoder
from llavakit.training.output import describe_output
from llavakit.training.stage import Notify, Trained, begin, finish
from llavakit.training.start import Start, start_from
from llavakit.training.trainable import check_shareable


def train(config: TrainConfig, notify: Notify = lambda line: None) -> Trained:
    """Train as the settings say.

    With ``accelerate launch`` or ``torchrun`` every process calls it, and they train together.

    Args:
        config: the settings.
        notify: is called with remarks, one line each, in the first process.

    Returns:
        What was written.

    Raises:
        DataError: the data has faults.
        ParameterError: settings that do not fit together, or an ``out`` that is in use.
        ModelError: the model cannot be read, or not be trained so; or ``out`` cannot be written.
        MissingDependencyError: a library of the extra ``train`` is missing.
    """
    from accelerate import PartialState

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loaders fork
    state = PartialState(cpu=config.device == "cpu")
    world = state.num_processes
    if config.batch_size % (config.per_device_batch_size * world):
        raise ParameterError(
            f"batch_size is {config.batch_size}, and {world} processes take "
            f"{config.per_device_batch_size} conversations each; change per_device_batch_size so "
            "that it is divided."
        )
    notify = notify if state.is_main_process else lambda line: None
    with _writing(config.out):
        return _train(config, state, world, notify)


@contextmanager
def _writing(out: str) -> Iterator[None]:
    """What the disk refuses, in one sentence."""
    try:
        yield
    except Exception as error:
        reason = _of_the_disk(error)
        if reason is None:
            raise
        raise CheckpointError(
            f"{out} cannot be written ({reason}); see to the disk and go on by resume (--resume), "
            "or name another directory."
        ) from error


def _of_the_disk(error: Exception) -> str | None:
    if isinstance(error, LlavaKitError):
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # What safetensors and torch's writer of archives say of a full disk, in errors of their own.
    full = ("No space left on device", "file write failed", "inline_container")
    return full[0] if any(text in str(error) for text in full) else None


def _train(config: TrainConfig, state: Any, world: int, notify: Notify) -> Trained:
    _check_out(config, first=state.is_main_process)
    state.wait_for_everyone()
    start = _together(state, lambda: start_from(config))
    if config.stage == "retrieve":
        from llavakit.training.retrieval.run import train_retriever

        return train_retriever(config, start, state, world, notify)
    encoder = Encoder(
        start.reader,
        min(config.max_length, start.reader.context_length),
        cut="over-length" in config.accept,
    )
    records = open_records(config.data)
    report = _looked_through(config, records, encoder, state, notify)
    if state.is_main_process:
        describe_output(start, config)
    state.wait_for_everyone()
    images = None if config.images is None else Path(config.images)
    folder = images if images is not None else records.folder
    examples = Examples(records, report.good, folder, encoder)
    return _run(config, start, examples, report, world, notify)


def _check_out(config: TrainConfig, *, first: bool) -> None:
    out = Path(config.out)
    if not first:
        return
    held = [one for one in out.iterdir() if one.name != "start"] if out.is_dir() else []
    if held and not config.resume:
        raise ParameterError(
            f"{out} holds something already; name a new directory, or go on with what it holds "
            "by resume (--resume)."
        )
    if config.resume and (out / TRAINING).is_file():
        _check_settings(config, out / TRAINING)
    out.mkdir(parents=True, exist_ok=True)


_MAY_CHANGE = {"out", "resume", "workers", "save_steps", "keep_checkpoints", "decode_images"}


def _check_settings(config: TrainConfig, file: Path) -> None:
    """Raise where a run would silently go on with other settings than it began with."""
    before, now = read_json(file), config.as_dict()
    for name in sorted(now.keys() - _MAY_CHANGE):
        if name in before and before[name] != now[name]:
            raise ParameterError(
                f"The run in {config.out} began with {name}={before[name]!r}, and {now[name]!r} is "
                "given now; resume with the settings that it began with."
            )


def _together(state: Any, act: Callable[[], Start]) -> Start:
    """The first process acts before the others, which then find what it has written."""
    with state.main_process_first():
        return act()


def _looked_through(
    config: TrainConfig, records: Records, encoder: Encoder, state: Any, notify: Notify
) -> Report:
    """Return the report on the data; the first process makes it and sends it to the others."""
    held: list[Any] = [None]
    if state.is_main_process:
        notify(f"Looking through {records.name} ...")
        report = check(
            records,
            images=None if config.images is None else Path(config.images),
            encoder=encoder,
            accept=config.accept,
            decode=config.decode_images,
            workers=max(4, config.workers),
        )
        held = [report]
    if state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(held)
    found: Report = held[0]
    if not config.skip_faulty:
        found.refuse_faults()
    for line in found.lines():
        notify(line)
    if not found.good:
        raise ParameterError(f"{records.name} has no record to train on.")
    return found


def _run(
    config: TrainConfig,
    start: Start,
    examples: Examples,
    report: Report,
    world: int,
    notify: Notify,
) -> Trained:
    import torch

    from llavakit.training.progress import Progress
    from llavakit.training.trainer import LlavaTrainer, arguments_of, blank_pictures

    begun = begin(config, start, world, notify)
    if config.share_images:
        check_shareable(begun.model)
    found = batches(examples, report, start.reader, share=config.share_images)
    if config.share_images:
        notify(
            f"{len(examples):,} conversations are learnt as {len(found.dataset):,}, which share "
            f"images: {_sum(found.lengths):,} tokens instead of {_sum(report.lengths):,}."
        )
    trainer = LlavaTrainer(
        config=config,
        lengths=found.lengths,
        progress=Progress(Path(config.out)),
        args=arguments_of(config, mixed=begun.mixed, world=world),
        model=begun.model,
        train_dataset=found.dataset,
        data_collator=found.collate,
    )
    side = int(start.reader.config.vision_config.image_size)
    blank = torch.zeros(1, 3, side, side)
    with blank_pictures(begun.inner, blank) if world > 1 else _nothing():
        return finish(config, start, begun, trainer, notify)


def _sum(lengths: Sequence[int]) -> int:
    return sum(map(abs, lengths))


@contextmanager
def _nothing() -> Iterator[None]:
    yield
