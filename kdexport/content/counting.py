"""Lengths of copy as each channel counts them. `COUNTERS` has them by name."""

import unicodedata
from collections.abc import Callable, Mapping

import regex

from kdexport.content.sms import count_sms
from kdexport.content.x_urls import find_urls

KEYWORD = regex.compile(r"\{keyword:([^{}]*)\}", regex.IGNORECASE)
EMOJI = regex.compile(
    r"[0-9#*]\ufe0f?\u20e3"  # a keycap
    r"|(?P<one>\p{RI}{2}|(?![©®](?!\ufe0f))[\p{Emoji}--[0-9#*\p{RI}]](?!\ufe0e)"
    r"(?:\ufe0f|\p{Emoji_Modifier})?(?:[\U000e0020-\U000e007e]+\U000e007f)?)"
    r"(?:\u200d(?&one))*",
    regex.VERSION1,
)
"""An emoji sequence: Unicode Technical Standard 51, section 1.4.9."""
WORD = regex.compile(
    r"\p{Han}|\p{Hiragana}+|\p{Katakana}+"
    r"|[\p{L}\p{N}\p{M}--[\p{Han}\p{Hiragana}\p{Katakana}]]+"
    r"(?:['\u2019.,\-][\p{L}\p{N}\p{M}--[\p{Han}\p{Hiragana}\p{Katakana}]]+)*",
    regex.VERSION1,
)
HASHTAG = regex.compile(r"(?<![\w&])[#\uff03](?=\w*\p{L})\w+")
MENTION = regex.compile(r"(?<![\w.])[@\uff20]\w[\w.]*")

X_URL = 23
X_LIGHT = ((0, 4351), (8192, 8205), (8208, 8223), (8242, 8247))
"""Code points that X counts once, all others twice: twitter-text, config/v3.json."""


def count_characters(text: str) -> int:
    """Unicode code points."""
    return len(text)


def count_graphemes(text: str) -> int:
    """What a reader sees as one character: extended grapheme clusters of UAX 29."""
    return len(regex.findall(r"\X", text))


def count_utf16(text: str) -> int:
    """16-bit units of UTF-16, as JavaScript counts."""
    return sum(2 if letter > "\uffff" else 1 for letter in text)


def count_utf8(text: str) -> int:
    """Bytes of UTF-8; half of a surrogate pair takes three."""
    return len(text.encode("utf-8", "surrogatepass"))


def count_words(text: str) -> int:
    """Words; each Chinese character is one, and so is each run of one kana."""
    return len(WORD.findall(text))


def count_google_ads(text: str) -> int:
    """Google Ads: a double-width character counts two, ``{KeyWord:default}`` as its default.

    Double-width are those that UAX 11 has as wide or full-width: Chinese, Japanese, Korean, emoji.
    Text is counted in NFC, as it is shown: a letter with its accent once.
    """
    shown = unicodedata.normalize("NFC", KEYWORD.sub(r"\1", text))
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in shown)


def count_x(text: str) -> int:
    """X: NFC; a URL counts 23, an emoji two, other code points one or two by `X_LIGHT`.

    ``parseTweet`` of twitter-text 3 with config/v3.json.
    """
    shown = unicodedata.normalize("NFC", text)
    urls = dict(find_urls(shown))
    emoji = dict(match.span() for match in EMOJI.finditer(shown))
    total = place = 0
    while place < len(shown):
        if place in urls:
            total, place = total + X_URL, urls[place]
        elif place in emoji:
            total, place = total + 2, emoji[place]
        else:
            code = ord(shown[place])
            total += 1 if any(first <= code <= last for first, last in X_LIGHT) else 2
            place += 1
    return total


def count_sms_segments(text: str) -> int:
    """Messages that an SMS is sent as; `count_sms` has its encoding and size too."""
    return count_sms(text).segments


def count_hashtags(text: str) -> int:
    """Hashtags: ``#`` and a run of letters, digits and ``_`` with a letter in it."""
    return len(HASHTAG.findall(text))


def count_mentions(text: str) -> int:
    """Accounts that are named with ``@``; addresses of e-mail are none."""
    return len(MENTION.findall(text))


COUNTERS: Mapping[str, Callable[[str], int]] = {
    "characters": count_characters,
    "graphemes": count_graphemes,
    "utf16": count_utf16,
    "utf8": count_utf8,
    "words": count_words,
    "google_ads": count_google_ads,
    "x": count_x,
    "sms_segments": count_sms_segments,
    "hashtags": count_hashtags,
    "mentions": count_mentions,
}
"""What a channel's limits may count."""
UNITS: Mapping[str, str] = {
    "characters": "characters",
    "graphemes": "characters",
    "utf16": "characters, emoji as two",
    "utf8": "bytes",
    "words": "words",
    "google_ads": "characters as Google Ads counts",
    "x": "characters as X counts",
    "sms_segments": "messages",
    "hashtags": "hashtags",
    "mentions": "mentions",
}
"""What each of them counts, in words."""
