"""Bundles and models measured: their time, their copy, their texts; beside one another."""
