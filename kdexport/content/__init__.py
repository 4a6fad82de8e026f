"""Briefs, channels, prompts and checks of copy: what marketing is to this project. No models."""
