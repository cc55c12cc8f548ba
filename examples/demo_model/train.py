"""Train the demo model from seed and code alone: ``python -m examples.demo_model.train``.

The vision tower learns patch labels, the Llama learns to copy; then both are joined by the
projector and learn to answer. Every phase of the recipe leaves a checkpoint of its own, which
``llavakit.load`` takes, and is not run again if that is there; one that was interrupted goes on.
With ``torchrun --nproc-per-node 2`` two processes train together, and see what one would see.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from safetensors.torch import load_model, save_model
from torch import Tensor
from transformers.utils import logging as hf_logging

from llavakit.errors import LlavaKitError, ParameterError
from llavakit.model.loader import load_reader
from llavakit.model.reader import Reader
from llavakit.training.examples import Encoder
from llavakit.training.trainer import CHECKPOINTS, last_checkpoint

from . import recipe as demo_recipe
from .export import WEIGHTS, describe, write_weights, zero_untrained_layer
from .losses import Learner
from .model import MAX_POSITIONS, build_model
from .pictures import Pictures, cached, joined
from .recipe import PARTS, AnyPhase, LessonPhase
from .tokenizer import build_tokenizer
from .trainer import PhaseTrainer, choose_trained, steps_of, task_of
from .vision import amplify_positions

START = "start"
BESIDE = "beside.safetensors"
"""In a phase's directory: what helped the model learn and is not part of it."""
CHUNK = 1000

Told = Callable[[str], object]


def pictures(kind: str, count: int, workdir: Path) -> Pictures:
    """Return the first ``count`` training pictures of a kind, drawn at the first call."""
    folder = workdir / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return joined([cached(kind, first, CHUNK, folder) for first in range(0, count, CHUNK)])


def write_start(out: Path) -> None:
    """Write the model that nothing has been taught yet."""
    tokenizer = build_tokenizer()
    image, padding = tokenizer.convert_tokens_to_ids("<image>"), tokenizer.pad_token_id
    model = build_model(seed=demo_recipe.MODEL_SEED, image_token_id=image, pad_token_id=padding)
    zero_untrained_layer(model)
    describe(model.config, tokenizer, out, torch.float32)
    write_weights(model, out)


def learner_of(reader: Reader) -> Learner:
    """The model of a directory, in fp32, with what was beside it."""
    torch.manual_seed(demo_recipe.HEADS_SEED)
    llava = reader.build({"dtype": torch.float32}).train()
    learner = Learner(llava, reader.tokenizer.tokenizer)
    if (reader.path / BESIDE).is_file():
        load_model(_beside(learner), reader.path / BESIDE)
    return learner


def _beside(learner: Learner) -> torch.nn.Module:
    return torch.nn.ModuleDict({"heads": learner.heads, "alignment": learner.alignment})


def run_phase(phase: AnyPhase, before: Path, workdir: Path, *, save_steps: int, told: Told) -> Path:
    """Train a phase, unless its directory is whole already.

    Args:
        phase: of the recipe.
        before: the directory of the phase before.
        workdir: where the phase's directory is made, and where pictures are kept.
        save_steps: steps between two checkpoints.
        told: is called with remarks, in the first process.

    Returns:
        The phase's directory.
    """
    out = workdir / phase.name
    if (out / WEIGHTS).is_file():
        return out
    state = PartialState()
    reader = load_reader(before)
    with state.main_process_first():
        store = {kind: pictures(kind, count, workdir) for kind, count in phase.drawn.items()}
    if state.is_main_process:
        describe(reader.config, reader.tokenizer.tokenizer, out, torch.float32)
    state.wait_for_everyone()
    learner = learner_of(reader)
    if isinstance(phase, LessonPhase) and phase.louder_positions:
        amplify_positions(learner.llava, *phase.louder_positions)
    first = {name: value.clone() for name, value in learner.llava.state_dict().items()}
    choose_trained(learner, phase)
    set_seed(phase.seed)
    last = last_checkpoint(out / CHECKPOINTS, told)
    told(f"Phase {phase.name}: {phase.steps} steps" + (f", from {last}." if last else "."))
    trainer = PhaseTrainer(
        phase,
        task_of(phase, learner),
        steps_of(phase, store, Encoder(reader, MAX_POSITIONS)),
        out,
        world=state.num_processes,
        save_steps=save_steps,
    )
    trainer.train(resume_from_checkpoint=last)
    if isinstance(phase, LessonPhase) and phase.own_share < 1:
        average(learner.llava, first, phase.own_share)
    if state.is_main_process:
        save_model(_beside(learner), str(out / BESIDE))
        write_weights(learner.llava, out)
    state.wait_for_everyone()
    return out


@torch.no_grad()
def average(model: torch.nn.Module, first: dict[str, Tensor], own_share: float) -> None:
    """Replace the weights by a mean of the first ones and themselves."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(first[name].to(value).lerp(value, own_share))


def train(
    phases: Iterable[AnyPhase],
    workdir: Path,
    out: Path,
    *,
    start: Path | None = None,
    save_steps: int = 100,
    told: Told = lambda line: None,
) -> None:
    """Run phases one after the other, and write the last one's model in fp16.

    Args:
        phases: of the recipe.
        workdir: where every phase leaves its directory.
        out: where the model is written.
        start: a checkpoint to go on from; None begins with nothing.
        save_steps: steps between two checkpoints to go on from.
        told: is called with remarks.

    Raises:
        ParameterError: another number of processes than the parts of a step can be dealt to.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    if PARTS % state.num_processes:
        raise ParameterError(
            f"A step has {PARTS} parts, which {state.num_processes} processes cannot share; "
            f"start {PARTS}, or one."
        )
    told = told if state.is_main_process else lambda line: None
    if start is None:
        start = workdir / START
        if state.is_main_process and not (start / WEIGHTS).is_file():
            write_start(start)
        state.wait_for_everyone()
    made = start
    for phase in phases:
        made = run_phase(phase, made, workdir, save_steps=save_steps, told=told)
    if state.is_main_process:
        reader = load_reader(made)
        describe(reader.config, reader.tokenizer.tokenizer, out, torch.float16)
        write_weights(reader.build({"dtype": torch.float16}), out)
        told(f"Wrote {out}.")


def chosen(first: str, last: str) -> Sequence[AnyPhase]:
    """The phases of the recipe from one to another; empty names are the ends.

    Raises:
        ParameterError: there is no such phase.
    """
    names = [phase.name for phase in demo_recipe.PHASES]
    for name in filter(None, (first, last)):
        if name not in names:
            raise ParameterError(f"There is no phase {name!r}; the phases are {', '.join(names)}.")
    begin = names.index(first) if first else 0
    end = names.index(last) + 1 if last else len(names)
    return demo_recipe.PHASES[begin:end]


def main() -> None:
    """Train the model and write its checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/demo-model"))
    parser.add_argument("--workdir", type=Path, default=Path("build/demo-train"))
    parser.add_argument(
        "--from", dest="start", type=Path, help="a checkpoint to train on, not from nothing"
    )
    parser.add_argument("--first", default="", help="begin with this phase")
    parser.add_argument("--last", default="", help="stop after this phase")
    parser.add_argument("--save-steps", type=int, default=100)
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hf_logging.disable_progress_bar()
    try:
        phases = chosen(args.first, args.last)
        train(
            phases, args.workdir, args.out,
            start=args.start, save_steps=args.save_steps, told=print,
        )  # fmt: skip
    except LlavaKitError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
