"""Model directories in the layout of `transformers`: config.json, safetensors (sharded or not), a tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerbounds.capturing.batches import positions, vocabulary
from layerbounds.capturing.loading import some
from layerbounds.capturing.targets import CaptureWarning
from layerbounds.exceptions import FileFormatError, InputError, MissingExtraError, first_line
from layerbounds.layers.tensor_files import check_weight, open_tensors


def is_model_directory(path: Path) -> bool:
    """Whether a path is a folder with a config.json."""
    return (path / "config.json").is_file()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            "model directories need transformers; run: pip install 'layerbounds[transformers]'"
        ) from error
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the loading bar and the reports of transformers off standard error: what matters is said by `load_model`."""
    logging = transformers.utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def load_model(folder: Path) -> nn.Module:
    """Load the model of a directory, with the class that its config.json names, from local safetensors files only.

    No code of the directory is run, and nothing is downloaded.

    Raises
    ------
    MissingExtraError
        If transformers is not installed.
    FileFormatError
        If the directory cannot be loaded, lacks tensors of the model, or holds a quantized checkpoint.

    Warns
    -----
    CaptureWarning
        About tensors that the model does not use.
    """
    transformers = _transformers()
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        names = getattr(config, "architectures", None) or []
        owner = getattr(transformers, names[0], None) if names else None
        loader = owner if owner is not None else transformers.AutoModel
        _check_dense(folder, config)
        with _quiet(transformers):
            # The checkpoint's own precision: what is captured is what the model computes.
            model, loaded = loader.from_pretrained(
                folder,
                use_safetensors=True,
                dtype="auto",
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except FileFormatError:
        raise
    except Exception as error:
        raise FileFormatError(
            f"{folder} cannot be loaded as a model directory ({first_line(error)}); it needs config.json and "
            "safetensors files."
        ) from error
    _check_complete(folder, model, loaded)
    network: nn.Module = model
    return network


def _check_dense(folder: Path, config: Any) -> None:
    """Refuse codes: transformers would convert them to floating point without a word where their names fit."""
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        about = quantized if isinstance(quantized, dict) else vars(quantized)
        raise FileFormatError(
            f"{folder} holds a checkpoint quantized with {about.get('quant_method', 'an unknown method')}, whose "
            "tensors are codes and not weights; pass the directory of the dense model."
        )
    with open_tensors(folder) as file:
        for name in file.names:
            if name.rpartition(".")[2] == "weight":
                check_weight(file, name)


def _check_complete(folder: Path, model: nn.Module, loaded: Mapping[str, Any]) -> None:
    """Refuse a model of which tensors were left at random values; transformers knows which may be absent."""
    missing, unexpected = (sorted(loaded.get(key) or ()) for key in ("missing_keys", "unexpected_keys"))
    hint = f", and has tensors that the model does not know: {some(unexpected)}" if unexpected else ""
    kind = type(model).__name__
    if missing:
        raise FileFormatError(
            f"{folder} lacks {some(missing)} of {kind}{hint}; the weights belong to another model, or their names have "
            "another prefix."
        )
    if mismatched := loaded.get("mismatched_keys"):
        name, stored, needed = next(iter(sorted(mismatched, key=str)))
        raise FileFormatError(
            f"{folder} does not fit {kind}: {name} has shape {tuple(stored)} and the model of config.json needs "
            f"{tuple(needed)}; the weights belong to another model."
        )
    if unexpected:
        warnings.warn(
            f"{folder} has tensors that {kind} does not use: {some(unexpected)}", CaptureWarning, stacklevel=3
        )


class TextBatches(Sequence[Any]):
    """The non-empty lines of a text file as batches of token ids with their attention masks.

    Shorter sequences are padded at their ends, whatever the tokenizer is set to: the positions of real tokens then do
    not depend on what else is in the batch.

    Parameters
    ----------
    folder : Path
        Directory with the tokenizer.
    text : Path
        UTF-8 text, a sequence in every line.
    size : int
        Sequences in a batch.
    limit : int, optional
        Sequences in all.
    max_tokens : int
        Longer sequences are cut off.

    Attributes
    ----------
    lines : list of str
    sequences : list of dict of str to list of int
        What the tokenizer makes of each line.
    """

    def __init__(self, folder: Path, text: Path, size: int, limit: int | None, max_tokens: int) -> None:
        if size < 1:
            raise InputError(f"the batch size is {size}; pass a positive number.")
        if max_tokens < 1:
            raise InputError(f"the number of tokens is limited to {max_tokens}; pass a positive number.")
        try:
            # A mark of the byte order, as some editors write it, is no text.
            lines = [line.strip() for line in text.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise FileFormatError(f"{text} cannot be read as UTF-8 text ({error}); check the path.") from error
        self.lines = [line for line in lines if line][:limit]
        if not self.lines:
            raise InputError(f"{text} holds no line of text.")
        try:
            tokenizer = _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except MissingExtraError:
            raise
        except Exception as error:
            raise FileFormatError(
                f"{folder} has no usable tokenizer ({first_line(error)}); add its tokenizer files."
            ) from error
        self._size, self._text = size, text
        self._masked = "attention_mask" in tokenizer.model_input_names
        # Padded positions are masked, so that any token will do.
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
        self._padding = {
            "input_ids": next((token for token in candidates if token is not None), 0),
            "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0) or 0,
            "attention_mask": 0,
        }
        self.sequences = self._tokenize(tokenizer, max_tokens)

    def _tokenize(self, tokenizer: Any, max_tokens: int) -> list[dict[str, list[int]]]:
        sequences = []
        for line in self.lines:
            try:
                found = tokenizer(line, truncation=True, max_length=max_tokens)
                sequence = {key: [int(i) for i in found[key]] for key in self._padding if key in found}
            # What the Rust part raises is no Exception.
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise InputError(
                    f"the tokenizer failed on {line[:40]!r} with at most {max_tokens} tokens ({first_line(error)}); "
                    "check its files and --max-tokens."
                ) from error
            sequence["attention_mask"] = [1] * len(sequence["input_ids"])
            if not sequence["input_ids"]:
                raise InputError(f"{self._text}: the tokenizer makes no token of {line[:40]!r}; leave this line out.")
            sequences.append(sequence)
        return sequences

    def check(self, model: nn.Module) -> None:
        """Make sure that a model can take all sequences, before it runs.

        Raises
        ------
        InputError
            If it has fewer positions than a sequence has tokens, or fewer tokens in its vocabulary than the tokenizer.
        """
        longest = max(range(len(self.lines)), key=lambda i: len(self.sequences[i]["input_ids"]))
        limit = positions(model)
        count = len(self.sequences[longest]["input_ids"])
        if limit is not None and count > limit:
            raise InputError(
                f"{self._text}: the line that starts {self.lines[longest][:40]!r} has {count} tokens, and "
                f"{type(model).__name__} has {limit} positions; pass --max-tokens {limit}."
            )
        known = vocabulary(model)
        if known is None:
            return
        if self._padding["input_ids"] >= known:
            # A token that was added for padding only, without a row in the embedding.
            self._padding["input_ids"] = 0
        largest = max(max(sequence["input_ids"]) for sequence in self.sequences)
        if largest >= known:
            raise InputError(
                f"{self._text}: the tokenizer gives token {largest}, and {type(model).__name__} knows {known} tokens; "
                "they belong to different models."
            )

    def __len__(self) -> int:
        return -(-len(self.lines) // self._size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        chosen = self.sequences[index * self._size : (index + 1) * self._size]
        width = max(len(sequence["input_ids"]) for sequence in chosen)
        batch = {
            key: torch.tensor([s[key] + [self._padding[key]] * (width - len(s["input_ids"])) for s in chosen])
            for key in chosen[0]
        }
        if not self._masked and bool(batch["attention_mask"].all()):
            # A model without masks can take sequences of one length.
            del batch["attention_mask"]
        return batch

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))
