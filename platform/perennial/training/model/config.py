"""Configurations of language models, and models built from them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.errors import InputError
from perennial.store.stored_json import parse_json
from perennial.training.model.initialisation import check_small_wang, draw_small_wang
from perennial.training.model.stored import ModelFiles, model_files, write_hollow_tensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from perennial.config.training import ModelSpec


def model_config(
    spec: ModelSpec, vocabulary: int, end_of_document: int, sequence_length: int
) -> PretrainedConfig:
    """Return the transformers configuration of stage 0's model; no weights are read.

    vocabulary: ids of the run's tokenizer. A random model has as many rows, or as many as `spec`
        pads them to with `vocab_size`; a stored one may have more, and never fewer.
    Raises InputError for an unknown architecture or field, a stored model that is not there or
    does not fit the run, before any compute.
    """
    if spec.path is None:
        config = _new_config(spec, vocabulary, end_of_document, sequence_length)
        if spec.init == "small-wang":
            check_small_wang(weightless_model(config))
        return config
    with tempfile.TemporaryDirectory() as scratch:
        files = model_files(spec.path, Path(scratch), weights=False)
        config = stored_config(files, spec.inherit_layers)
    check_fit(config, spec.path, vocabulary, sequence_length)
    return config


def stored_config(files: ModelFiles, inherit_layers: int | None) -> PretrainedConfig:
    """Return the configuration of a stored model, cut to its first layers where asked."""
    from transformers import AutoConfig

    from perennial.training.model.inherit import shortened

    if files.gguf is None:
        _check_type(files, parse_json((files.folder / "config.json").read_text()).get("model_type"))
    try:
        config = AutoConfig.from_pretrained(
            files.folder, gguf_file=files.gguf, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as wrong:
        raise _refused(files.where, _first_line(wrong)) from None
    _check_type(files, config.model_type)
    if files.gguf is None and getattr(config, "quantization_config", None) is not None:
        raise _refused(files.where, "its weights are quantized, which cannot be trained")
    return config if inherit_layers is None else shortened(config, inherit_layers)


def check_fit(config: PretrainedConfig, where: str, vocabulary: int, sequence_length: int) -> None:
    """Refuse a stored model with fewer ids or positions than the run has."""
    if vocabulary > config.get_text_config().vocab_size:
        check_vocabulary(config, where, vocabulary)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and sequence_length > positions:
        raise InputError(
            "run file",
            "corpora.sequence_length",
            f"sequences of {sequence_length} tokens are longer than the {positions} positions of "
            f"{where}",
            f"use at most {positions}",
            code="sequence-too-long",
        )


def check_vocabulary(config: PretrainedConfig, where: str, vocabulary: int) -> None:
    """Refuse a tokenizer of another size than the stored model's vocabulary.

    The model's own tokenizer may be smaller, because vocabularies are padded; another one of
    another size has ids that mean something else.
    """
    rows = config.get_text_config().vocab_size
    if vocabulary != rows:
        raise InputError(
            "run file",
            "model.path",
            f"{where} has a vocabulary of {rows}, the run's tokenizer one of {vocabulary}",
            "set tokenizer.path to this model's own tokenizer; what that lacks, a corpus brings: "
            "see stages.corpora.NAME.extend_tokenizer",
            code="vocabulary-mismatch",
        )


def random_model(config: PretrainedConfig, seed: int, init: str = "architecture") -> Any:
    """Return a model with random weights, the same on every worker.

    Args:
        config: of the architecture.
        seed: of the weights.
        init: as `model.init` of the run file.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if init == "small-wang":
        draw_small_wang(model, seed)
    return model


def count_parameters(files: ModelFiles) -> int:
    """Return the number of a stored model's parameters; its weights are neither read nor held.

    Raises:
        InputError: the files lack weights that the configuration asks for, or have other shapes.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        with tempfile.TemporaryDirectory() as hollow:
            write_hollow_tensors(files, Path(hollow))
            shutil.copy(files.folder / "config.json", hollow)
            model, report = AutoModelForCausalLM.from_pretrained(
                hollow,
                device_map="meta",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, SafetensorError) as wrong:
        raise _refused(files.where, _first_line(wrong)) from None
    absent = sorted(report["missing_keys"]) + sorted(str(k) for k in report["mismatched_keys"])
    if absent:
        raise _refused(
            files.where,
            f"{len(absent)} weights are missing or have other shapes, such as {absent[0]}",
        )
    return int(model.num_parameters())


def stored_model(folder: Path, gguf: str | None = None, dtype: Any = None) -> Any:
    """Return the model in a local folder, by default in float32; nothing is unpickled.

    Raises RuntimeError when the files lack weights that the configuration asks for.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with _no_gguf_bar():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=gguf,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    absent = sorted(report["missing_keys"]) + sorted(str(k) for k in report["mismatched_keys"])
    if absent:
        raise RuntimeError(f"{folder}: {len(absent)} weights are missing, such as {absent[0]}")
    if gguf is not None:  # the weights are plain numbers from here on, and may be saved as such
        model.hf_quantizer = None
        del model.config.quantization_config
    return model


@contextmanager
def _no_gguf_bar() -> Iterator[None]:
    """Keep off the bar that the reader of GGUF files draws, whatever transformers is set to."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


def weightless_model(config: PretrainedConfig) -> Any:
    """Return a model of a configuration with shapes and no numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _new_config(
    spec: ModelSpec, vocabulary: int, end_of_document: int, sequence_length: int
) -> PretrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    if spec.architecture not in _causal_types():
        raise InputError(
            "run file",
            "model.architecture",
            f"{spec.architecture!r} is not a causal language model of transformers",
            "give a model type such as gpt_neox or llama",
            code="architecture-unknown",
        )
    config_class = CONFIG_MAPPING[spec.architecture]
    defaults = config_class()
    for name in spec.config:
        if not hasattr(defaults, name):
            raise InputError(
                "run file",
                f"model.config.{name}",
                f"{config_class.__name__} has no such field",
                "see that class's documentation in transformers",
                code="model-config-invalid",
            )
    padded = spec.config.get("vocab_size", vocabulary)
    if not isinstance(padded, int) or padded < vocabulary:
        raise InputError(
            "run file",
            "model.config.vocab_size",
            f"{padded!r} is not a number of at least the tokenizer's {vocabulary} entries",
            f"give {vocabulary} or more, or leave it out",
            code="vocabulary-mismatch",
        )
    settings: dict[str, Any] = {
        "max_position_embeddings": sequence_length,
        "bos_token_id": end_of_document,
        "eos_token_id": end_of_document,
    }
    try:
        return config_class(**settings | spec.config | {"vocab_size": padded})
    except (TypeError, ValueError, StrictDataclassError) as wrong:
        # The last line: those before it name transformers' own validators.
        problem = str(wrong).strip().splitlines()[-1].strip()
        raise InputError(
            "run file", "model.config", problem, "correct the field", code="model-config-invalid"
        ) from None


def _causal_types() -> set[str]:
    # The names alone: the mapping of classes imports hundreds of configurations.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _check_type(files: ModelFiles, model_type: str | None) -> None:
    # First, so that transformers is never asked for a model with code of its own.
    if model_type not in _causal_types():
        raise _refused(
            files.where, f"{model_type!r} is not a causal language model of transformers"
        )


def _refused(where: str, problem: str) -> InputError:
    return InputError(
        "run file",
        "model.path",
        f"{where}: {problem}",
        "give a Hugging Face folder of safetensors or a GGUF file of a causal language model",
        code="model-unusable",
    )


def _first_line(wrong: Exception) -> str:
    return next(iter(str(wrong).strip().splitlines()), type(wrong).__name__)
