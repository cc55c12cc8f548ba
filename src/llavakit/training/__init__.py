"""Training of the bundled demo model, and fine-tuning of LLaVA models. Needs torch."""

import logging

# Whoever imports peft or transformers' Trainer imports bitsandbytes, which complains of kernels
# that only a processor with 4-bit weights could use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
