"""kdexport: from a big language model to a small, fast, verified one that writes marketing copy."""

__version__ = "0.1.0"
