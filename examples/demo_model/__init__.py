"""A LLaVA from nothing: the world, the recipe and the trainer of the bundled demo model."""
