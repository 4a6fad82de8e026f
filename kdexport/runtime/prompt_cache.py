"""Keys and values of prompts' beginnings, kept for the next prompt that begins the same.

A beginning is read in blocks of BLOCK tokens, whether blocks of it are kept or not: each block is
one call with the same tokens after the same past, so what is kept is what would be computed, bit
for bit, whatever the scheme. Knows tokens and buffers; neither text nor graphs.
"""

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.runtime.kv_cache import KVCache
from kdexport.runtime.session import Session
from kdexport.system.machine import machine_facts, make_folder

BLOCK = 32
FORMAT = 1
NAME = re.compile(r"[0-9a-f]{64}\.kv")
Array = np.ndarray[Any, Any]


@dataclass
class Reads:
    """How many tokens were found (in memory, on disk) and how many had to be computed."""

    from_memory: int = 0
    from_disk: int = 0
    computed: int = 0


class PromptCache:
    """The beginnings of prompts that one session has read.

    ``max_bytes`` of memory, the least recently used go first; ``folder`` keeps them on disk too,
    up to ``max_disk_bytes``. ``warn`` is told, in a line, of a file that cannot be used; it is
    computed again. ``reads`` counts tokens.
    """

    def __init__(
        self,
        session: Session,
        *,
        max_bytes: int = 256_000_000,
        folder: Path | None = None,
        max_disk_bytes: int = 1_000_000_000,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._session = session
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[str, Array] = OrderedDict()
        self._root = _root(session)
        self.reads = Reads()
        self._disk: _Disk | None = None
        if folder is not None:
            model = session.manifest.model
            shape = (2 * model.n_layers, model.n_kv_heads, BLOCK, model.head_dim)
            dtype = np.dtype(session.manifest.kv_cache)
            self._disk = _Disk(folder / self._root[:16], shape, dtype, max_disk_bytes, warn)

    @property
    def n_bytes(self) -> int:
        """What the kept blocks take in memory."""
        return sum(block.nbytes for block in self._blocks.values())

    def begin(self, prompt_ids: Sequence[int], max_new_tokens: int = 0) -> KVCache:
        """A cache of one row that holds a prompt's whole blocks, for `generate` to go on from.

        At least two tokens of the prompt are left to read: some kernels round a token that is
        alone in its call otherwise than among others. ``max_new_tokens`` is room besides.
        """
        *_, cache = self.begin_in_parts(prompt_ids, max_new_tokens)
        return cache

    def begin_in_parts(
        self, prompt_ids: Sequence[int], max_new_tokens: int = 0
    ) -> Iterator[KVCache]:
        """`begin`, with time for other work after each block that had to be computed.

        The same cache comes again and again, the last time with all blocks.
        """
        n_prompt = len(prompt_ids)
        cache = self._session.new_cache(1, n_prompt + max_new_tokens)
        if n_prompt >= self._session.manifest.model.max_length:
            yield cache  # generate says so
            return
        tokens = np.asarray(prompt_ids, dtype=np.int64)
        used: list[str] = []
        key = self._root
        try:
            for begin in range(0, (n_prompt - 2) // BLOCK * BLOCK, BLOCK):
                ids = tokens[begin : begin + BLOCK]
                key = hashlib.sha256(key.encode() + ids.astype("<i8").tobytes()).hexdigest()
                values = self._find(key)
                if values is not None:
                    cache.extend(values)
                else:
                    self._session.run(ids[None], cache)
                    self._keep(key, cache.read(begin, begin + BLOCK))
                    self.reads.computed += BLOCK
                used.append(key)
                if values is None:
                    yield cache
        finally:
            self._used(used)
        yield cache

    def _find(self, key: str) -> Array | None:
        block = self._blocks.get(key)
        if block is not None:
            self.reads.from_memory += BLOCK
            return block
        block = self._disk.read(key) if self._disk else None
        if block is not None:
            self._blocks[key] = block
            self.reads.from_disk += BLOCK
        return block

    def _keep(self, key: str, values: Array) -> None:
        self._blocks[key] = values
        if self._disk:
            self._disk.write(key, values)

    def _used(self, keys: list[str]) -> None:
        """Note a use: a block counts as used after those that follow it, so it outlives them."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)
        n_bytes = self.n_bytes
        while self._blocks and n_bytes > self._max_bytes:
            _, block = self._blocks.popitem(last=False)
            n_bytes -= block.nbytes
        if self._disk:
            self._disk.used(keys)


class _Disk:
    """Blocks as files: a line with the key and the sha256 of what follows, then plain values.

    The hash tells damage, not malice: whoever may write here may change what is written with it.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        max_bytes: int,
        warn: Callable[[str], None],
    ) -> None:
        make_folder(folder)
        self._folder = folder
        self._shape = shape
        self._dtype = dtype.newbyteorder("<")
        self._max_bytes = max_bytes
        self._warn = warn
        self._wrote = False

    def read(self, key: str) -> Array | None:
        """The block of a key; None where there is none or none that can be believed."""
        path = self._folder / f"{key}.kv"
        n_bytes = self._dtype.itemsize * int(np.prod(self._shape))
        head = len(_line(key, b""))
        try:
            if path.is_symlink() or path.stat().st_size != head + n_bytes:
                raise ValueError("it has another size")
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._refuse(path, error)
            return None
        values = content[head:]
        if content[:head] != _line(key, values):
            self._refuse(path, ValueError("its hash differs"))
            return None
        return np.frombuffer(values, dtype=self._dtype).reshape(self._shape)

    def write(self, key: str, values: Array) -> None:
        """Write beside and then in place; a disk that cannot be written to is none."""
        path = self._folder / f"{key}.kv"
        beside = path.with_suffix(f".{os.getpid()}.partial")
        content = values.astype(self._dtype).tobytes()
        try:
            beside.write_bytes(_line(key, content) + content)
            beside.replace(path)
            self._wrote = True
        except OSError as error:
            self._warn(f"{path}: is not kept ({error.strerror or error})")
            with suppress(OSError):
                beside.unlink(missing_ok=True)

    def used(self, keys: list[str]) -> None:
        """Note a use in the files' times; after writing, take away the least recently used."""
        for key in reversed(keys):
            with suppress(OSError):
                os.utime(self._folder / f"{key}.kv")
        if not self._wrote:
            return
        self._wrote = False
        files = []
        for path in self._folder.parent.glob("*/*.kv"):
            with suppress(OSError):  # another process may have taken it away
                if NAME.fullmatch(path.name):
                    files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        n_bytes = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if n_bytes <= self._max_bytes:
                return
            with suppress(OSError):
                path.unlink()
            n_bytes -= size

    def _refuse(self, path: Path, error: Exception) -> None:
        self._warn(f"{path}: is not used ({error}); it is computed again")


def _line(key: str, values: bytes) -> bytes:
    digest = hashlib.sha256(values).hexdigest()
    return f"kdexport prompt block {FORMAT} {key} {digest}\n".encode("ascii")


def _root(session: Session) -> str:
    """What every key begins with: whatever the values depend on besides the tokens."""
    import onnxruntime

    machine = machine_facts()
    facts = [
        FORMAT,
        BLOCK,
        session.manifest.model_dump_json(),
        session.graph,
        onnxruntime.__version__,
        machine.cpu,
        machine.features,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
