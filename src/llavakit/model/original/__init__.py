"""Checkpoints as the original LLaVA wrote them (https://github.com/haotian-liu/LLaVA).

They are read straight from their files; nothing is converted beforehand. :mod:`.config` reads
what ``config.json`` says, :mod:`.parts` finds the directories that a model is made of (base,
vision tower), :mod:`.sentencepiece` and :mod:`.tokenizer` read prompts as the original did,
:mod:`.tensors`, :mod:`.lora` and :mod:`.weights` give the weights under HF's names, one tensor
at a time, and :mod:`.checkpoint` puts it all together.
"""
