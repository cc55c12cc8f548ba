"""Training of the bundled demo model, and fine-tuning of LLaVA models. Needs torch."""

from llavakit.model.quantization import silence_advice

silence_advice()
