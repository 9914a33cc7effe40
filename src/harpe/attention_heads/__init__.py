"""What the heads of a model do and want, and tables of frequencies learned for them: measured on a loaded model, with
frozen weights."""
