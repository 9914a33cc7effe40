"""Rotary positions of q and k: inverse frequencies, phases, the rotation and its kernel.

Tensors in, tensors out: nothing here knows of models, checkpoints or methods. What chooses bases is in `bases`.
"""
