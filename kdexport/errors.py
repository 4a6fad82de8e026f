"""What goes wrong in a way that the user can mend, said in one line and without a traceback."""

import importlib.util

LIBRARIES = {
    "train": ("torch", "transformers", "safetensors", "optimum"),
    "export": ("torch", "transformers", "onnx", "onnx_ir", "mobius"),
}


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


def require_extras(*extras: str) -> None:
    """Raise MissingExtraError for the first library of an extra that is not installed."""
    for extra in extras:
        for library in LIBRARIES[extra]:
            if importlib.util.find_spec(library) is None:
                raise MissingExtraError(library, extra)
