"""What a model is trained on: files of rows, pairs of prompt and copy, what is dropped and why."""
