"""What X takes for a URL, which it counts as 23 whatever its length.

The rules of twitter-text's ``extractUrlsWithIndices`` (Apache-2.0, Copyright 2018 Twitter, Inc.,
https://github.com/twitter/twitter-text), URLs without ``https://`` included.
"""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files

import regex

Span = tuple[int, int]
LONGEST_URL = 4096
LONGEST_LABEL = 63  # of a domain, in punycode
LONGEST_TCO_SLUG = 40
PUNYCODE = "xn--"

INVALID = "\ufffe\ufeff\uffff"
MARKERS = "\u202a-\u202e\u061c\u200e\u200f\u2066-\u2069"
SPACES = "\t-\r \x85\xa0\u1680\u180e\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SIGNS = r"!'#%&()*+,\\./:;<=>?@\[\]\^{|}~$"
LATIN = "\xc0-\xd6\xd8-\xf6\xf8-\u024f\u0253\u0254\u0256\u0257\u0259\u025b\u0263\u0268\u026f"
LATIN += "\u0272\u0289\u028b\u02bb\u0300-\u036f\u1e00-\u1eff"
LETTER = rf"[^{SIGNS}_\-{SPACES}{INVALID}{MARKERS}]"  # of a domain
INNER = f"[^{SIGNS}{SPACES}{INVALID}{MARKERS}]"
SUBDOMAIN = rf"(?>{LETTER}(?:{INNER}*{LETTER})?)\."  # atomic: a long text takes no longer
TLD = rf"(?:(?:\L<tlds>)(?=[^0-9a-zA-Z@+-]|$)|{PUNYCODE}[-0-9a-z]+)"
DOMAIN = rf"(?:{SUBDOMAIN}){{0,127}}(?>{LETTER}(?:-*{LETTER})*)\.{TLD}"
PATH = rf"[a-z\u0400-\u04ff0-9!*';:=+,.$/%#\[\]\-\u2013_~@|&{LATIN}]"
BRACKETS = rf"\((?:{PATH}+|{PATH}*\({PATH}+\){PATH}*)\)"
PATH_END = rf"(?:[+\-a-z\u0400-\u04ff0-9=_#/{LATIN}]|{BRACKETS})"
QUERY = r"[a-z0-9!?*'@();:&=+$/%#\[\]\-_.,~|]*[a-z0-9\-_&=#/]"


@cache
def _patterns() -> tuple[regex.Pattern[str], ...]:
    """A URL with what stands before it, an ASCII domain, a t.co URL, a dot and a top domain."""
    lines = files("kdexport.content").joinpath("tlds.txt").read_text("utf-8").splitlines()
    tlds = [tld for line in lines if not line.startswith("#") for tld in line.split()]
    url = (
        rf"(?P<before>[^A-Za-z0-9@\uff20$#\uff03{INVALID}]|[{MARKERS}]|^)"
        rf"(?P<url>(?P<protocol>https?://)?(?P<domain>{DOMAIN})(?::[0-9]+)?"
        rf"(?P<path>/(?:(?:{PATH}*(?:{BRACKETS}{PATH}*)*{PATH_END})|(?:@{PATH}+/))*)?"
        rf"(?:\?{QUERY})?)"
    )
    ascii_domain = rf"(?:[\-a-z0-9{LATIN}]+\.)+{TLD}"
    tco = rf"^https?://t\.co/(?P<slug>[a-z0-9]+)(?:\?{QUERY})?"
    return (
        regex.compile(url, regex.IGNORECASE, tlds=tlds),
        regex.compile(ascii_domain, regex.IGNORECASE, tlds=tlds),
        regex.compile(tco, regex.IGNORECASE),
        regex.compile(rf"\.{TLD}", regex.IGNORECASE, tlds=tlds),
    )


WORDS = regex.compile(f"[^{SPACES}]+")


def find_urls(text: str) -> Iterator[Span]:
    """Where the URLs of a text begin and end, in code points."""
    for word in WORDS.finditer(text) if "." in text else ():
        for begin, end in _urls_of(word[0]):
            yield word.start() + begin, word.start() + end


def _urls_of(word: str) -> Iterator[Span]:
    """The URLs of a text without spaces, looked for while there is a top domain ahead."""
    url, ascii_domain, tco, top = _patterns()
    end_of_last = max((match.end() for match in top.finditer(word)), default=0)
    place = 0
    while place < end_of_last and (match := url.search(word, place)):
        place = match.end()
        begin, end = match.span("url")
        domain, protocol = match["domain"], match["protocol"]
        if not _valid(match["url"], protocol or "https://", domain):
            continue
        if protocol:
            short = tco.match(match["url"])
            if short and len(short["slug"]) > LONGEST_TCO_SLUG:
                continue
            yield begin, begin + short.end() if short else end
        elif match["before"] not in ("-", "_", ".", "/"):
            spans = [found.span() for found in ascii_domain.finditer(domain)]
            for at, (first, after) in enumerate(spans):
                whole = match["path"] and at == len(spans) - 1
                yield begin + first, end if whole else begin + after


def _valid(url: str, protocol: str, domain: str) -> bool:
    """Whether a URL is short enough, and each label of its domain is one in punycode."""
    if domain.startswith(PUNYCODE) and not _patterns()[1].search(domain):
        return False
    labels = domain.split(".")
    lengths = [
        len(label if label.isascii() else PUNYCODE + label.encode("punycode").decode())
        for label in labels
    ]
    return (
        all(0 < length <= LONGEST_LABEL for length in lengths)
        and len(protocol) + len(url) + sum(lengths) + len(labels) - 1 - len(domain) <= LONGEST_URL
    )
