"""Training by the stages of a method, with the Hugging Face Trainer: stages, loss, checkpoints, progress.

What is measured on the result is in `evaluation`.
"""
