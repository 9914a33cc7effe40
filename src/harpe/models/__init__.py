"""Encodings in transformers models: geometry, hooks, loading, applying."""
