"""Speed and correctness on one GPU, in one command: ``python -m benchmarks.gpu --out FOLDER``."""
