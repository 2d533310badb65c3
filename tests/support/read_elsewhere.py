"""What another program's libraries read in release folders; run by that program's Python.

Use: python read_elsewhere.py CONSUMER FOLDER...

Each folder has `ids.npy`, token ids of one sequence, unless it is a tokenizer alone. The logits
that the consumer computes go to `CONSUMER.npy` beside them; what else it sees is printed as one
JSON document.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_FLOAT32 = 0
"""a type's number in llama.cpp"""
TEXT = "The 10 colours of\n\tthe rainbow: caf\u00e9."


def read_with_transformers(folder: Path, ids: Any) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        torch_dtype=torch.float32,
        attn_implementation="eager",  # torch's own leaves out the soft cap of Gemma 2
    ).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    its = model.generation_config
    seen = {
        "use_cache": model.config.use_cache and its.use_cache,
        "ends": its.eos_token_id,
        "dtype": str(model.config.torch_dtype),
    }
    return logits, seen | see_tokenizer(folder)


def see_tokenizer(folder: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "padding_side", "chat_template")
    fields = {name: getattr(tokenizer, name) for name in (*names, "model_max_length")}
    return fields | {"text": tokenizer(TEXT)["input_ids"]}


def read_with_ctranslate2(folder: Path, ids: Any) -> tuple[Any, dict[str, Any]]:
    from ctranslate2 import Generator
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        TransformersConverter(str(folder)).convert(scratch, force=True)
        tokens = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(ids.tolist())
        generator = Generator(scratch, device="cpu", compute_type="float32")
        return np.array(generator.forward_batch([tokens]))[0], {}


def read_with_llama_cpp(folder: Path, ids: Any) -> tuple[Any, dict[str, Any]]:
    from llama_cpp import Llama

    size = len(ids)
    llama = Llama(
        str(folder / "model.gguf"),
        n_ctx=size,
        n_batch=size,
        logits_all=True,
        verbose=False,
        type_k=_FLOAT32,  # keys and values have 16 bits otherwise
        type_v=_FLOAT32,
    )
    llama.eval(ids.tolist())
    its = {
        "bos": llama.token_bos(),
        "eos": llama.token_eos(),
        "text": llama.tokenize(TEXT.encode(), add_bos=True, special=False),
    }
    return np.array(llama.scores[:size]), its


READERS = {
    "transformers": read_with_transformers,
    "ctranslate2": read_with_ctranslate2,
    "llama_cpp": read_with_llama_cpp,
}


def main(consumer: str, folders: list[Path]) -> None:
    seen = {}
    for folder in folders:
        try:
            if not (folder / "ids.npy").exists():
                seen[str(folder)] = see_tokenizer(folder)
                continue
            logits, seen[str(folder)] = READERS[consumer](folder, np.load(folder / "ids.npy"))
            np.save(folder / f"{consumer}.npy", logits)
        except Exception as wrong:
            seen[str(folder)] = {"error": f"{type(wrong).__name__}: {wrong}"[:400]}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], [Path(name) for name in sys.argv[2:]])
