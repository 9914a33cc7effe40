"""Stages into trained weights, with the Hugging Face Trainer."""
