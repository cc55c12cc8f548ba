"""Training of the bundled demo model, and fine-tuning of LLaVA models. Needs torch."""
