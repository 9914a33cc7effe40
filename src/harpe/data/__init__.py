"""Texts in, packed token sequences out."""
