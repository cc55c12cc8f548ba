"""Train the demo model from seed and code alone: ``python -m llavakit.training.demo_train``.

The vision tower learns patch labels and the Llama learns to copy, each alone and side by side;
then both are joined by the projector and learn to answer. Every phase ends in a file of the work
folder and is not run again if that file is there; a phase that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import random
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from llavakit.training import demo_recipe
from llavakit.training.demo_data import Lessons
from llavakit.training.demo_export import export
from llavakit.training.demo_losses import WordAlignment, joint_loss
from llavakit.training.demo_model import build_model
from llavakit.training.demo_pictures import Pictures, cached, joined
from llavakit.training.demo_recipe import LessonPhase, RepeatPhase, VisionPhase
from llavakit.training.demo_repeats import train_repeats
from llavakit.training.demo_tokenizer import save_tokenizer
from llavakit.training.demo_vision import PatchHeads, amplify_positions, train_vision
from llavakit.training.muon import MuonAdamW
from llavakit.training.progress import plot

SAVE_SECONDS = 240.0
CHUNK = 1000


def pictures(kind: str, count: int, workdir: Path) -> Pictures:
    """Return the first ``count`` training pictures of a kind, drawn at the first call."""
    folder = workdir / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return joined([cached(kind, first, CHUNK, folder) for first in range(0, count, CHUNK)])


def tokenizer_in(workdir: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer, trained at the first call."""
    folder = workdir / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


class Run:
    """The model with everything that trains it, and where its files are."""

    def __init__(self, workdir: Path, rank: int = 0, world: int = 1) -> None:
        self.workdir = workdir
        self.rank, self.world = rank, world
        self.tokenizer = tokenizer_in(workdir)
        self.model: LlavaForConditionalGeneration = build_model(
            seed=demo_recipe.MODEL_SEED,
            image_token_id=self.tokenizer.convert_tokens_to_ids("<image>"),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        torch.manual_seed(demo_recipe.HEADS_SEED)
        self.heads = PatchHeads()
        self.alignment = WordAlignment(self.tokenizer)

    def file(self, phase: str) -> Path:
        """Return the file that a finished phase leaves."""
        return self.workdir / f"{phase}.pt"

    def save(self, path: Path, **more: Any) -> None:
        """Write all weights and ``more`` to a file, at once or not at all."""
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "alignment": self.alignment.state_dict(),
            **more,
        }
        if self.rank:
            return
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.rename(path)

    def load(self, path: Path, only: str = "") -> dict[str, Any]:
        """Read weights back: all, or those of the model whose names contain ``only``."""
        state: dict[str, Any] = torch.load(path, weights_only=False)
        weights = {name: value for name, value in state["model"].items() if only in name}
        self.model.load_state_dict(weights, strict=not only)
        if only != "language_model":
            self.heads.load_state_dict(state["heads"])
        if not only and "alignment" in state:
            self.alignment.load_state_dict(state["alignment"], strict=False)
        return state

    def vision(self, phase: VisionPhase) -> None:
        """Run a phase of patch labels."""
        scenes = pictures("scene", phase.scenes, self.workdir)
        pages = pictures("page", phase.pages, self.workdir)
        train_vision(
            self.model, self.heads, scenes, pages,
            seed=phase.seed, steps=phase.steps, scene_share=phase.scene_share, rate=phase.rate,
        )  # fmt: skip

    def lessons(self, phase: LessonPhase, before: dict[str, Any]) -> dict[str, Any]:
        """Run a phase of questions and answers; return the optimizer's state for the next."""
        text_only = set(phase.mix) <= {"copying", "talk"}
        count = CHUNK if text_only else demo_recipe.SCENES
        scenes = pictures("scene", count, self.workdir)
        pages = pictures("page", CHUNK if text_only else demo_recipe.PAGES, self.workdir)
        optimizer = MuonAdamW(
            trainable(self, text_only), matrix_rate=phase.matrix_rate, other_rate=phase.other_rate
        )
        if "optimizer" in before:
            optimizer.load_state_dict(before["optimizer"])
        begin = 0
        unfinished = self.workdir / f"{phase.name}.unfinished.pt"
        if unfinished.exists():
            state = self.load(unfinished)
            optimizer.load_state_dict(state["optimizer"])
            begin = state["step"]
        elif phase.louder_positions:
            amplify_positions(self.model, *phase.louder_positions)
        first = _copied(self.model) if not begin else state["first"]
        if self.world > 1:
            dist.barrier()  # the first process removes the file in the end: everybody reads first
        lessons = Lessons(
            self.tokenizer, scenes, pages, f"{phase.seed}-{self.rank}-{begin}", phase.tasks
        )
        noise = random.Random(f"noise-{phase.seed}-{self.rank}-{begin}")
        budget = phase.tokens // self.world
        started = saved = time.monotonic()
        average: dict[str, float] = {}
        tally: dict[str, tuple[int, int]] = {}
        course: list[float] = []
        for step in range(begin, phase.steps):
            batches = lessons.batch(phase.mix, budget)
            answers = sum(float(batch.weights.sum()) for batch in batches)
            parts: dict[str, float] = {}
            for batch in batches:
                share = float(batch.weights.sum()) / answers
                loss, found = joint_loss(
                    self.model, self.heads, self.alignment, batch, noise, tally,
                    patch_weight=phase.patch_weight, word_weight=phase.word_weight,
                )  # fmt: skip
                torch.autograd.backward(loss * share)
                for name, value in found.items():
                    parts[name] = parts.get(name, 0.0) + share * value
            if self.world > 1:
                average_gradients(optimizer.parameters)
            done = max(0.0, step / phase.steps - phase.hold) / (1 - phase.hold)
            factor = phase.first + (phase.last - phase.first) * done
            norm = optimizer.step(min(factor, (step + 1) / max(1, phase.warmup)))
            course.append(parts["answers"])
            for name, value in {**parts, "norm": norm}.items():
                average[name] = 0.95 * average.get(name, value) + 0.05 * value
            if step % 20 == 0 and not self.rank:
                pace = (time.monotonic() - started) / (step - begin + 1)
                line = " ".join(f"{name} {value:.3f}" for name, value in average.items())
                print(f"{phase.name} {step:5d} {pace:.2f} s/step {line}", flush=True)
            if step % 100 == 99 and not self.rank:
                rates = (
                    f"{task} {right / asked:.2f}" for task, (right, asked) in sorted(tally.items())
                )
                print("  " + ", ".join(rates), flush=True)
                tally.clear()
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save(unfinished, optimizer=optimizer.state_dict(), step=step + 1, first=first)
                saved = time.monotonic()
        if not self.rank:
            steps = range(begin, begin + len(course))
            plot(course, steps).save(self.workdir / f"{phase.name}-loss.png")
            unfinished.unlink(missing_ok=True)
        if phase.own_share < 1:
            self._average(first, phase.own_share)
        return {"optimizer": optimizer.state_dict()}

    @torch.no_grad()
    def _average(self, first: dict[str, torch.Tensor], own_share: float) -> None:
        """Replace the weights by a mean of the first ones and themselves."""
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                value.copy_(first[name].lerp(value, own_share))

    def finish(self, phase: str, more: dict[str, Any]) -> None:
        """Write the file of a finished phase."""
        self.save(self.file(phase), **more)


def _copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def trainable(run: Run, text_only: bool) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the named parameters that a phase of lessons trains."""
    text = run.model.model.language_model
    named = [(f"text.{name}", p) for name, p in text.named_parameters()]
    if text_only:
        return named
    tower = run.model.model.vision_tower
    last = f"layers.{tower.config.num_hidden_layers - 1}."
    seen = [
        (n, p) for n, p in tower.named_parameters() if last not in n and "post_layernorm" not in n
    ]
    named += [(f"tower.{name}", p) for name, p in seen]
    projector = run.model.model.multi_modal_projector
    named += [(f"projector.{name}", p) for name, p in projector.named_parameters()]
    named += [(f"patch_head.{name}", p) for name, p in run.heads.named_parameters()]
    named += [(f"word_head.{name}", p) for name, p in run.alignment.named_parameters()]
    return named


def run_vision(workdir: Path, threads: int) -> None:
    """Run all phases of the vision tower."""
    torch.set_num_threads(threads)
    run = Run(workdir)
    for phase in demo_recipe.VISION:
        if run.file(phase.name).exists():
            run.load(run.file(phase.name))
            continue
        run.vision(phase)
        run.finish(phase.name, {})


def run_text(workdir: Path, threads: int) -> None:
    """Run all phases of the text model alone."""
    torch.set_num_threads(threads)
    run = Run(workdir)
    before: dict[str, Any] = {}
    for phase in demo_recipe.TEXT:
        if run.file(phase.name).exists():
            before = run.load(run.file(phase.name))
            continue
        if isinstance(phase, RepeatPhase):
            train_repeats(run.model, seed=phase.seed, steps=phase.steps, rate=phase.rate)
            before = {}
        else:
            before = run.lessons(phase, before)
        run.finish(phase.name, before)


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])  # type: ignore[union-attr]
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    at = 0
    for parameter in parameters:
        part = flat[at : at + parameter.numel()]
        parameter.grad = part.view_as(parameter)
        at += parameter.numel()


def run_joint(rank: int, world: int, workdir: Path, last: str, out: Path) -> None:
    """Run the phases of the whole model, up to ``last`` if given, as one of ``world`` processes.

    One process a core: on a CPU that is faster than one process with as many threads.
    """
    torch.set_num_threads(1)
    if world > 1:
        meeting = workdir / "meeting"
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting.absolute()}", rank=rank, world_size=world
        )
    run = Run(workdir, rank, world)
    run.load(run.file(demo_recipe.VISION[-1].name), only="vision_tower")
    run.load(run.file(demo_recipe.TEXT[-1].name), only="language_model")
    before: dict[str, Any] = {}
    for phase in demo_recipe.JOINT:
        if run.file(phase.name).exists():
            before = run.load(run.file(phase.name))
        else:
            print(f"phase {phase.name}", flush=True)
            before = run.lessons(phase, before)
            if world > 1:
                dist.barrier()  # nobody looks for a file before everybody has passed
            run.finish(phase.name, before)
            if world > 1:
                dist.barrier()
        if phase.name == last:
            break
    if not rank:
        export(run.model, workdir / "tokenizer", out)
    if world > 1:
        dist.destroy_process_group()


def start_joint(world: int, workdir: Path, last: str, out: Path) -> None:
    """Run the joint phases in ``world`` processes."""
    (workdir / "meeting").unlink(missing_ok=True)
    if world == 1:
        run_joint(0, 1, workdir, last, out)
    else:
        spawn(run_joint, (world, workdir, last, out), nprocs=world)  # type: ignore[no-untyped-call]


def main() -> None:
    """Train the model and write its checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/demo-model"))
    parser.add_argument("--workdir", type=Path, default=Path("build/demo-train"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("vision", "text", "joint"), help="one part of the work")
    parser.add_argument("--last", default="", help="stop after this phase of the joint training")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    tokenizer_in(args.workdir)
    half = max(1, args.threads // 2)
    if args.only == "vision":
        run_vision(args.workdir, half)
    elif args.only == "text":
        run_text(args.workdir, half)
    elif args.only == "joint":
        start_joint(args.threads, args.workdir, args.last, args.out)
    else:
        alone = [
            get_context("spawn").Process(target=job, args=(args.workdir, half))
            for job in (run_vision, run_text)
        ]
        for process in alone:
            process.start()
        for process in alone:
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)
        start_joint(args.threads, args.workdir, args.last, args.out)


if __name__ == "__main__":
    main()
