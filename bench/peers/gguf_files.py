"""A Hugging Face folder of the Llama family -> GGUF: float32, then Q8_0 and Q4_0 by llama.cpp.

    .peers/llama/bin/python -m bench.peers.gguf_files FOLDER SOURCE.gguf OUT

Tokenizer and hyperparameters are taken over from SOURCE.gguf, which FOLDER was converted from; the
weights are FOLDER's, so that every engine begins with the same numbers. Q8_0 and Q4_0 are what
llama-quantize makes by default: a head tied to the embedding stays at 8 bits in Q4_0.
"""

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray[Any, Any]
FTYPES = {"q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0"}
NOT_TAKEN = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


def interleaved(weights: Array, n_heads: int) -> Array:
    """Rows of each head from [first half, second half] to pairs, as GGUF's Llama rotates them."""
    rows, width = weights.shape
    halves = weights.reshape(n_heads, 2, rows // n_heads // 2, width)
    return halves.swapaxes(1, 2).reshape(rows, width)


def write_float32(folder: Path, source: Path, out: Path) -> None:
    """The weights of ``folder`` with everything else of ``source``."""
    fields = gguf.GGUFReader(source).fields
    architecture = str(fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in fields.items():
        if not name.startswith(NOT_TAKEN):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    count = int(fields[f"{architecture}.block_count"].contents())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, count)
    heads = {
        "q_proj.weight": int(fields[f"{architecture}.attention.head_count"].contents()),
        "k_proj.weight": int(fields[f"{architecture}.attention.head_count_kv"].contents()),
    }
    for path in sorted(folder.glob("*.safetensors")):
        for name, weights in load_file(path).items():
            n_heads = next((n for end, n in heads.items() if name.endswith(end)), None)
            values = interleaved(weights, n_heads) if n_heads else weights
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise SystemExit(f"{name} has no place in a GGUF of {architecture}")
            writer.add_tensor(target, np.ascontiguousarray(values.astype(np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(folder: Path, source: Path, out: Path) -> None:
    """Write all three files."""
    import llama_cpp as lib

    full = out / "f32.gguf"
    write_float32(folder, source, full)
    for name, ftype in FTYPES.items():
        params = lib.llama_model_quantize_default_params()
        params.ftype = getattr(lib, ftype)
        target = out / f"{name}.gguf"
        if lib.llama_model_quantize(str(full).encode(), str(target).encode(), params):
            raise SystemExit(f"llama.cpp cannot write {target}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
