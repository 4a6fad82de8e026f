"""The verdict: what a bench found, as JSON, a table, a page, and what it decides. No models."""
