"""Copy for briefs: written, checked, ranked, in bulk, and how often it passes."""
