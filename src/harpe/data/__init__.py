"""Texts in, packed token sequences out: reading corpora, sampling, tokenising, packing.

No model is loaded here, only tokenizers; what is trained on the sequences is in `training`.
"""
