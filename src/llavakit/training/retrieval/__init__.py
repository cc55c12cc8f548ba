"""The stage ``retrieve``: a LoRA and a projection by which questions find images of pages."""
