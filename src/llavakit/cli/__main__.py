"""``python -m llavakit.cli``, as ``accelerate launch -m`` starts it."""

from llavakit.cli import main

main()
