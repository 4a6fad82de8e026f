"""What the tree promises of itself: who imports what, what is never called, how long a file gets.

The direction of imports between the parts is import-linter's (`make imports`); here stands what it
cannot see: what an import really loads, and calls that must not be written.
"""

import ast
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdexport

PACKAGE = Path(kdexport.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400
MAX_FUNCTION_LINES = 60

HEAVY = {
    "accelerate",
    "gguf",
    "mobius",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "optimum",
    "pyarrow",
    "safetensors",
    "torch",
    "transformers",
}
RUNTIME_MODULES = [
    f"kdexport.{part}.{module.name}"
    for part in ("runtime", "serve")
    for module in pkgutil.iter_modules([PACKAGE / part])
]
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "os.system",
    "torch.load",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
}


def loaded_by(*modules: str) -> set[str]:
    """Top-level names in sys.modules after a fresh interpreter imported the modules."""
    code = (
        f"import json, sys, {', '.join(modules)}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout))


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in FILES:
        yield str(path.relative_to(PACKAGE.parent)), ast.parse(path.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> Iterator[str]:
    """The full names of the modules that an import statement names; relative ones left out."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module


def test_the_command_line_loads_nothing_heavy() -> None:
    assert not loaded_by("kdexport.commands.main") & (
        HEAVY | {"onnxruntime", "numpy", "tokenizers"}
    )


def test_the_runtime_loads_neither_torch_nor_export_libraries() -> None:
    assert RUNTIME_MODULES
    assert not loaded_by(*RUNTIME_MODULES) & HEAVY


def test_the_runtime_names_no_heavy_module_even_inside_a_function() -> None:
    found = [
        f"{path}:{node.lineno} {name}"
        for path, tree in trees()
        if "/runtime/" in path or "/serve/" in path
        for node in ast.walk(tree)
        for name in imported(node)
        if name.partition(".")[0] in HEAVY or name.startswith(("kdexport.train", "kdexport.export"))
    ]
    assert not found


def test_content_needs_the_standard_library_pydantic_regex_and_yaml() -> None:
    allowed = sys.stdlib_module_names | {"kdexport", "pydantic", "regex", "yaml"}
    found = [
        f"{path}:{node.lineno} {name}"
        for path, tree in trees()
        if "/content/" in path
        for node in ast.walk(tree)
        for name in imported(node)
        if name.partition(".")[0] not in allowed
    ]
    assert not found


def unsafe(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything that could run code out of a data file, or hide a mistake."""
    for node in ast.walk(tree):
        for name in imported(node):
            if name.partition(".")[0] in UNSAFE_MODULES:
                yield node.lineno, name  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE_CALLS:
            yield node.lineno, ast.unparse(node.func)
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if keyword.arg == "trust_remote_code":
                    yield node.lineno, f"trust_remote_code={value}"
                if keyword.arg in ("allow_pickle", "shell") and value != "False":
                    yield node.lineno, f"{keyword.arg}={value}"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "bare except"


def test_nothing_unsafe_is_called() -> None:
    assert not [f"{path}:{line} {what}" for path, tree in trees() for line, what in unsafe(tree)]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load('x')",
        "yaml.load(text, Loader=x)",
        "f(trust_remote_code=False)",
        "np.load('x', allow_pickle=True)",
        "subprocess.run('x', shell=True)",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_the_search_for_unsafe_calls_finds_them(source: str) -> None:
    assert list(unsafe(ast.parse(source)))


def test_every_module_says_what_it_is() -> None:
    assert not [path for path, tree in trees() if not (ast.get_docstring(tree) or "").strip()]


def test_files_and_functions_stay_short() -> None:
    long = [
        f"{path.relative_to(PACKAGE.parent)}: {n} lines"
        for path in FILES
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    ]
    long += [
        f"{path}:{node.lineno} {node.name}: {n} lines"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (n := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long
