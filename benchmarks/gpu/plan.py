"""The stages, in the order of what their figures are worth; limits in seconds, for an H200."""

from __future__ import annotations

from benchmarks.gpu.processes import Stage

_HERE = "benchmarks.gpu"

STAGES = (
    Stage("facts", f"{_HERE}.checks:facts", 60),
    Stage("self-tests", f"{_HERE}.checks:self_tests", 60),
    Stage("oracle", f"{_HERE}.checks:oracle", 90, 10),
    Stage("7b-captured", f"{_HERE}.decoding:captured", 120, 20),
    Stage("7b-compiled", f"{_HERE}.decoding:compiled", 200, 40),
    Stage("profiles", f"{_HERE}.profiles:profiles", 60, 20),
    Stage("served", f"{_HERE}.serving:served", 150, 20),
    Stage("generate-eager", f"{_HERE}.plain:eager", 60, 20),
    Stage("generate-static", f"{_HERE}.plain:static", 120, 40),
    Stage("first-token", f"{_HERE}.serving:first_token", 60, 20),
    Stage("images", f"{_HERE}.serving:images", 60, 15),
    Stage("34b", f"{_HERE}.decoding:large", 150, 45),
    Stage("packed", f"{_HERE}.decoding:packed", 120, 30),
    Stage("gpu-tests", f"{_HERE}.checks:gpu_tests", 240, 30),
)
