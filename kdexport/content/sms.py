"""How an SMS is encoded and into how many messages it is split: 3GPP TS 23.038 and TS 23.040.

Knows the default alphabet and its extension, not the national tables that a network may offer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

GSM_7 = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ"
    " !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§"
    "¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
"""The default alphabet, without its escape; TS 23.038, section 6.2.1."""
GSM_7_EXTENSION = "\f^{}\\[~]|€"
"""What an escape stands before, so that it takes two septets; TS 23.038, section 6.2.1.1."""
SINGLE = {"GSM-7": 160, "UCS-2": 70}
JOINED = {"GSM-7": 153, "UCS-2": 67}  # six octets of each message say which one it is


@dataclass(frozen=True)
class SmsCount:
    """``units``: septets of GSM-7, or 16-bit units of UCS-2; ``segments``: messages."""

    encoding: str
    units: int
    segments: int


def count_sms(text: str) -> SmsCount:
    """The encoding, size and number of messages of a text; one foreign character makes it UCS-2.

    A character of two units, an escape and its letter or a surrogate pair, is not split between
    two messages.
    """
    one, two = set(GSM_7), set(GSM_7_EXTENSION)
    if set(text) <= one | two:
        encoding, sizes = "GSM-7", [2 if letter in two else 1 for letter in text]
    else:
        encoding, sizes = "UCS-2", [2 if letter > "\uffff" else 1 for letter in text]
    units = sum(sizes)
    if units <= SINGLE[encoding]:
        return SmsCount(encoding, units, min(units, 1))
    return SmsCount(encoding, units, _n_filled(sizes, JOINED[encoding]))


def _n_filled(sizes: Iterable[int], room: int) -> int:
    """How many messages with so much room are filled one after another."""
    n_messages, used = 1, 0
    for size in sizes:
        if used + size > room:
            n_messages, used = n_messages + 1, 0
        used += size
    return n_messages
