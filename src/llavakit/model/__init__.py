"""LLaVA checkpoints as torch modules; knows no requests. Importing it imports no torch."""
