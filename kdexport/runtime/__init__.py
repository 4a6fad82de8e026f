"""Runs a bundle: onnxruntime, tokenizers, numpy and jinja2, and nothing of torch."""
