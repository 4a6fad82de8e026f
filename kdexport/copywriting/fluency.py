"""How likely a text is under another bundle than the one that wrote it: its teacher's, say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdexport.bundle import Bundle, open_bundle
from kdexport.content.prompts import Message
from kdexport.runtime.quality import log_softmax, target_logits
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text


class Judge:
    """A bundle that reads what others wrote, in its own tokens."""

    def __init__(self, bundle: Path, n_threads: int | None = None) -> None:
        self.bundle: Bundle = open_bundle(bundle)
        self._session = open_session(self.bundle, n_threads=n_threads)
        self._codec = load_text(self.bundle)

    def mean_logprob(self, messages: Sequence[Message], added: str) -> float | None:
        """The mean log-probability of an answer's tokens in nats, given the chat it answers.

        ``added``: what stands after the last message's opening. None for a text without tokens,
        and for one that the judge is too short for.
        """
        head = self._codec.encode(self._codec.render_chat(messages))
        tail = self._codec.tokenizer.encode(added, add_special_tokens=False).ids
        if not head or not tail:
            return None
        if len(head) + len(tail) > self._session.manifest.model.max_length:
            return None
        ids = np.asarray([*head, *tail], dtype=np.int64)
        targets = np.arange(len(head), len(ids))
        logprobs = log_softmax(target_logits(self._session, ids, targets).astype(np.float64))
        return float(logprobs[np.arange(len(tail)), ids[targets]].mean())
