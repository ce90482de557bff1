"""GGUF files as models that run: transformers decodes the weights, and knows the architecture and the tokenizer."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerbounds.capturing.huggingface import check_complete, quiet, require_transformers
from layerbounds.checkpoints.gguf.container import parts
from layerbounds.exceptions import FileFormatError, MissingExtraError, first_line


def load_gguf(path: Path) -> nn.Module:
    """Load a language model from a GGUF file, in float32, as llama.cpp decodes it.

    Its modules have the names that `layerbounds.load_checkpoint` gives to the layers of the same file.

    Parameters
    ----------
    path : Path
        One file.

    Raises
    ------
    MissingExtraError
        If transformers, gguf or accelerate is not installed.
    FileFormatError
        If the file is split, damaged, lacks tensors, or of an architecture that transformers does not read.

    Warns
    -----
    CaptureWarning
        About tensors that the model does not use.
    """
    transformers: Any = require_transformers()
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("GGUF files need the package gguf; run: pip install 'layerbounds[gguf]'") from error
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist or is not a file; check the path.")
    if len(parts(path)) > 1:
        raise FileFormatError(
            f"{path} is one of several files, which transformers does not read; join them first "
            "(llama-gguf-split --merge)."
        )
    try:
        # Its bar for decoding knows no switch.
        with quiet(transformers), redirect_stderr(io.StringIO()):
            model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except ImportError as error:
        raise MissingExtraError(
            f"running a GGUF file needs more packages ({first_line(error)}); run: pip install accelerate"
        ) from error
    except Exception as error:
        raise FileFormatError(
            f"{path} cannot be loaded as a model ({first_line(error)}); transformers reads GGUF files of some "
            "architectures, with tensors that the package gguf can decode."
        ) from error
    check_complete(path, model, loaded)
    network: nn.Module = model
    return network
