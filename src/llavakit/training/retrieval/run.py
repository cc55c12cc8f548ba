"""A run of the stage ``retrieve``, from its settings to the adapter that is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llavakit.errors import ParameterError
from llavakit.training.batches import collator_of
from llavakit.training.config import TrainConfig
from llavakit.training.data_files import open_records
from llavakit.training.output import describe_output
from llavakit.training.progress import Progress
from llavakit.training.retrieval.batches import PairCollator, Pairs
from llavakit.training.retrieval.contrast import Retriever
from llavakit.training.retrieval.mining import Miner
from llavakit.training.retrieval.pairs import check_pairs
from llavakit.training.retrieval.trainer import PairTrainer
from llavakit.training.stage import Notify, Trained, begin, finish
from llavakit.training.start import Start
from llavakit.training.trainer import arguments_of


def train_retriever(
    config: TrainConfig, start: Start, state: Any, world: int, notify: Notify
) -> Trained:
    """Check the pairs, train an adapter on them, and write it.

    Args:
        config: the settings.
        start: what is trained.
        state: of the processes that train together.
        world: how many they are.
        notify: is called with remarks.

    Raises:
        DataError: the data has faults.
    """
    pairs = _pairs(config, start, notify)
    if state.is_main_process:
        describe_output(start, config)
    state.wait_for_everyone()
    out = Path(config.out)
    begun = begin(config, start, world, notify)
    collate = PairCollator(collator_of(start.reader))
    trainer = PairTrainer(
        config=config,
        lengths=[1] * len(pairs),
        progress=Progress(out),
        args=arguments_of(config, mixed=begun.mixed, world=world),
        model=Retriever(begun.model, config.temperature),
        train_dataset=pairs,
        data_collator=collate,
    )
    trainer.add_callback(Miner(pairs, collate, config.hard_negatives, out, notify))
    return finish(config, start, begun, trainer, notify)


def _pairs(config: TrainConfig, start: Start, notify: Notify) -> Pairs:
    """Look through the data; each process does, for all need the digests of the images."""
    records = open_records(config.data)
    folder = records.folder if config.images is None else Path(config.images)
    notify(f"Looking through {records.name} ...")
    report = check_pairs(records, folder, workers=max(4, config.workers))
    if not config.skip_faulty:
        report.refuse_faults()
    for line in report.lines():
        notify(line)
    if not report.good:
        raise ParameterError(f"{records.name} has no record with a query to train on.")
    return Pairs(records, report, folder, start.reader)
