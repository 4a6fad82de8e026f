"""A bundle behind HTTP: OpenAI's API and copy for briefs, many requests in one batch. No torch."""
