"""What goes wrong in a way that the user can mend, said in one line and without a traceback."""

import errno
import importlib.util
import re

LIBRARIES = {
    "train": ("torch", "transformers", "safetensors", "optimum"),
    "export": ("torch", "transformers", "onnx", "onnx_ir", "mobius"),
    "sweep": ("torch", "optuna"),
    "optimum": ("torch", "transformers", "onnx"),
    "tensorboard": ("tensorboard",),
    "constrained": ("llguidance",),
    "parquet": ("pyarrow",),
    "ranking": ("sklearn",),
    "serve": ("starlette", "uvicorn", "sse_starlette", "prometheus_client", "llguidance"),
}

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
FULL_TEXTS = re.compile(
    r"\(os error 2[78]\)|^\d+ requested and \d+ written$|^problem writing element \d+ to file$"
)
"""How safetensors and numpy say that a disk is full, where no error number is left of it."""


class KdexportError(Exception):
    """Base of every error that the command line prints as one line: ``where: message; remedy``."""

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", remedy: str = "") -> None:
        self.message = message
        self.where = where
        self.remedy = remedy
        super().__init__(message)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}; {self.remedy}" if self.remedy else text


class InputError(KdexportError):
    """A recipe, a data file, a model or a bundle that cannot be used as it stands."""

    exit_code = 2


class MissingExtraError(KdexportError):
    """A library of an optional extra is not installed."""

    exit_code = 2

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is missing", remedy=f"pip install 'kdexport[{extra}]'")


class NotAtHandError(KdexportError):
    """A model that has to be fetched or converted first."""


class ParityError(KdexportError):
    """An exported graph does not compute what its source model computes."""


class ThresholdError(KdexportError):
    """A bundle fails what its recipe says that it must not."""


def require_extras(*extras: str) -> None:
    """Raise MissingExtraError for the first library of an extra that is not installed."""
    for extra in extras:
        for library in LIBRARIES[extra]:
            if importlib.util.find_spec(library) is None:
                raise MissingExtraError(library, extra)


def first_words(error: BaseException, limit: int = 200) -> str:
    """What a library says of its error, on one line; its kind where it says nothing."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= limit else f"{words[: limit - 1]}…"


def refusal(error: BaseException) -> KdexportError | None:
    """An error as one that the user can mend, if it is one: ours, or the operating system's."""
    if isinstance(error, KdexportError):
        return error
    full = full_disk(error)
    if full is None and isinstance(error, OSError) and error.filename and error.strerror:
        return InputError(error.strerror, where=str(error.filename))
    return full


def full_disk(error: BaseException, where: str = "") -> InputError | None:
    """Where an error comes of a full disk, whatever library it went through: that, in a line.

    ``where`` is named for a library that does not say which file it wrote.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        if number in FULL or FULL_TEXTS.search(str(cause)):
            return InputError(
                "the disk is full",
                where=str(getattr(cause, "filename", None) or where),
                remedy="make room and run the same command again",
            )
        cause = cause.__cause__ or cause.__context__
    return None
