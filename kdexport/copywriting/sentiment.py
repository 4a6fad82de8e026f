"""How positive copy sounds: VADER (Hutto & Gilbert 2014), a lexicon with rules, for English."""

import importlib.util
from collections.abc import Callable

Sentiment = Callable[[str, str], float | None]
LANGUAGE = "en"


def sentiment_scorer() -> Sentiment | None:
    """Text and language -> from -1, negative, to 1, positive; None for other languages.

    None where vaderSentiment is not installed.
    """
    if importlib.util.find_spec("vaderSentiment") is None:
        return None
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def score(text: str, language: str) -> float | None:
        if language != LANGUAGE:
            return None
        return float(analyzer.polarity_scores(text)["compound"])

    return score
