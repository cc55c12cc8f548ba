"""Measure llavakit on one GPU, stage by stage, on a machine that has little else.

Each figure is a line of FOLDER/figures.jsonl, on the disk as soon as it is measured. Stages come
in the order of their value, so that a run that is killed leaves what matters most. --tiny is the
rehearsal: the same code on a CPU, in about a minute; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path

from benchmarks.gpu.plan import STAGES
from benchmarks.gpu.processes import Options, Stopped, leave, run_all, run_here
from benchmarks.gpu.records import FILE, Records, described

SETTINGS = {
    # Asks the driver's library whether there is a GPU: to ask CUDA would spoil it for forks.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
IMPORTS = (
    "torch",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
    "transformers.models.llava_next.modeling_llava_next",
    "transformers.models.llava_next.processing_llava_next",
    "transformers.models.llama.modeling_llama",
    "transformers.models.clip.modeling_clip",
    "transformers.generation.utils",
    "llavakit.engine.engine",
    "llavakit.model.llava",
    "benchmarks.gpu.checks",
    "benchmarks.gpu.decoding",
    "benchmarks.gpu.serving",
    "benchmarks.gpu.plain",
    "benchmarks.gpu.profiles",
)


def main() -> None:
    """Run the stages that are asked for."""
    options, names, minutes, alone = _options()
    for folder in (options.out, options.logs):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    stages = [stage for stage in STAGES if stage.name in names]
    if alone is not None:
        leave(run_here(next(stage for stage in STAGES if stage.name == alone), options))
    if not (options.tiny or _has_gpu()):
        sys.exit("there is no GPU here; --tiny is the rehearsal on a CPU")
    if not options.fresh:
        _import(Records(options.out, "imports"))
    try:
        run_all(stages, options, 60 * minutes)
    except Stopped as signalled:
        sys.exit(f"ended by {signalled}; the figures so far are in {options.out / FILE}")
    print(f"the figures are in {options.out / FILE}")


def _options() -> tuple[Options, list[str], float, str | None]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--logs", type=Path, help="a log for each stage; default: FOLDER")
    parser.add_argument("--tiny", action="store_true", help="the rehearsal on a CPU")
    parser.add_argument("--minutes", type=float, default=14.0, help="for all stages together")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STAGE")
    parser.add_argument("--skip", nargs="+", choices=names, default=[], metavar="STAGE")
    parser.add_argument(
        "--fresh", action="store_true", help="start an interpreter for each stage instead of a fork"
    )
    parser.add_argument("--stage", choices=names, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    out, logs = asked.out.resolve(), (asked.logs or asked.out).resolve()
    options = Options(out, logs, asked.tiny, asked.fresh)
    return options, [n for n in asked.only if n not in asked.skip], asked.minutes, asked.stage


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _import(records: Records) -> None:
    """Import what stages need, once; what cannot be imported is written and goes on."""
    for name in IMPORTS:
        try:
            importlib.import_module(name)
        except Exception as error:
            traceback.print_exc()
            records.write(name, ok=False, error=described(error))


if __name__ == "__main__":
    main()
