"""Model directories in the layout of `transformers`: config.json, safetensors (sharded or not), a tokenizer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerbounds.arguments import one_of
from layerbounds.capturing.batches import positions, vocabulary
from layerbounds.capturing.loading import some
from layerbounds.capturing.sides import IGNORED, takes_two_sides
from layerbounds.capturing.targets import CaptureWarning
from layerbounds.exceptions import FileFormatError, InputError, MissingExtraError, first_line
from layerbounds.layers.tensor_files import check_weight, open_tensors

#: In which a model computes: as its checkpoint is stored, or a type.
STORED = "stored"
MODEL_DTYPES = (STORED, "float32", "float16", "bfloat16", "float64")


def is_model_directory(path: Path) -> bool:
    """Whether a path is a folder with a config.json."""
    return (path / "config.json").is_file()


def require_transformers() -> Any:
    """The package, or one clear sentence where it is missing."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            "model directories need transformers; run: pip install 'layerbounds[transformers]'"
        ) from error
    return transformers


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
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


def load_model(folder: Path, dtype: str = STORED) -> nn.Module:
    """Load the model of a directory, with the class that its config.json names, from local safetensors files only.

    No code of the directory is run, and nothing is downloaded.

    Parameters
    ----------
    folder : Path
    dtype : str
        In which the model computes: the name of a type, or ``"stored"``, that of the checkpoint.

    Raises
    ------
    MissingExtraError
        If transformers is not installed.
    InputError
        If the type is not known.
    FileFormatError
        If the directory cannot be loaded, lacks tensors of the model, or holds a quantized checkpoint.

    Warns
    -----
    CaptureWarning
        About tensors that the model does not use.
    """
    one_of(dtype, "model_dtype", MODEL_DTYPES)
    transformers = require_transformers()
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        names = getattr(config, "architectures", None) or []
        owner = getattr(transformers, names[0], None) if names else None
        loader = owner if owner is not None else transformers.AutoModel
        _check_dense(folder, config)
        with quiet(transformers):
            model, loaded = loader.from_pretrained(
                folder,
                use_safetensors=True,
                # The library's name for the checkpoint's own precision.
                dtype="auto" if dtype == STORED else getattr(torch, dtype),
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
    check_complete(folder, model, loaded)
    if model.dtype == torch.float64 and getattr(model.config, "_experts_implementation", "eager") not in (
        "eager",
        None,
    ):
        # The grouped product of PyTorch does not know float64.
        model.set_experts_implementation("eager")
    network: nn.Module = model
    return network


def load_for_capture(folder: Path, dtype: str | None, device: torch.device | None) -> tuple[nn.Module, dict[str, str]]:
    """Load a model to be run on calibration data, in a precision that suits the place.

    Parameters
    ----------
    folder : Path
    dtype : str, optional
        As in `load_model`. Default: that of the checkpoint, but float32 where it has 16 bits and the model runs on a
        CPU. Most processors have no arithmetic of 16 bits and emulate it, many times slower; float32 holds every such
        weight exactly, and activations are rounded less.
    device : torch.device, optional
        Where the model will run; default: on the CPU.

    Returns
    -------
    model : nn.Module
    about : dict of str to str
        ``model_dtype``, and ``stored_dtype`` where that is another one by default.
    """
    model = load_model(folder, STORED if dtype is None else dtype)
    kind = str(model.dtype).removeprefix("torch.")
    if dtype is None and (device is None or device.type == "cpu") and model.dtype in (torch.float16, torch.bfloat16):
        return model.float(), {"model_dtype": "float32", "stored_dtype": kind}
    return model, {"model_dtype": kind}


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


def check_complete(folder: Path, model: nn.Module, loaded: Mapping[str, Any]) -> None:
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


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        # A mark of the byte order, as some editors write it, is no text.
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read as UTF-8 text ({error}); check the path.") from error
    if not any(lines):
        raise InputError(f"{path} holds no line of text.")
    return [line for line in lines if line]


class TextBatches(Sequence[Any]):
    """The non-empty lines of a text file as batches of token ids with their attention masks.

    Shorter sequences are padded at their ends, whatever the tokenizer is set to: the positions of real tokens then do
    not depend on what else is in the batch.

    Parameters
    ----------
    folder : Path
        Directory with the tokenizer, or a GGUF file.
    text : Path
        UTF-8 text, a sequence in every line.
    size : int
        Sequences in a batch.
    limit : int, optional
        Sequences in all.
    max_tokens : int
        Longer sequences are cut off.
    targets : Path, optional
        Text that the decoder of a model with an encoder and a decoder is to write, line by line as ``text``.

    Attributes
    ----------
    lines : list of str
    sequences : list of dict of str to list of int
        What the tokenizer makes of each line.
    """

    def __init__(
        self,
        folder: Path,
        text: Path,
        size: int,
        limit: int | None,
        max_tokens: int,
        targets: Path | None = None,
    ) -> None:
        if size < 1:
            raise InputError(f"the batch size is {size}; pass a positive number.")
        if max_tokens < 1:
            raise InputError(f"the number of tokens is limited to {max_tokens}; pass a positive number.")
        self.lines = _lines(text)[:limit]
        written = None if targets is None else _lines(targets)[:limit]
        if written is not None and len(written) != len(self.lines):
            raise InputError(
                f"{text} has {len(self.lines)} lines and {targets} has {len(written)}; write a target for every line."
            )
        # A GGUF file has its tokenizer inside.
        place = {"gguf_file": folder.name} if folder.is_file() else {}
        transformers = require_transformers()
        try:
            with quiet(transformers):
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder.parent if place else folder, local_files_only=True, **place
                )
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
        self._targets: list[list[int]] | None = None
        if written is not None:
            self._targets = [self._target(tokenizer, line, max_tokens) for line in written]
        #: The first token of a decoder that does not take labels and shift them itself.
        self._start: int | None = None

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

    def _target(self, tokenizer: Any, line: str, max_tokens: int) -> list[int]:
        try:
            return [int(i) for i in tokenizer(text_target=line, truncation=True, max_length=max_tokens)["input_ids"]]
        except Exception as error:
            raise InputError(
                f"the tokenizer failed on {line[:40]!r} as a target ({first_line(error)}); check its files."
            ) from error

    def _check_decoder(self, model: nn.Module) -> None:
        two = takes_two_sides(model)
        if two != (self._targets is not None):
            what = f"{type(model).__name__} has a decoder" if two else f"{type(model).__name__} has no decoder"
            todo = (
                f"pass --targets with a line for each line of {self._text} that it should write, or the same file again"
                if two
                else "leave out --targets"
            )
            raise InputError(f"{what}, apart from the encoder; {todo}.")
        if two and "labels" not in inspect.signature(model.forward).parameters:
            start = getattr(model.config, "decoder_start_token_id", None)
            if start is None:
                raise InputError(
                    f"{type(model).__name__} does not say with which token its decoder starts; set "
                    "decoder_start_token_id in config.json."
                )
            self._start = int(start)

    def check(self, model: nn.Module) -> None:
        """Make sure that a model can take all sequences, before it runs.

        Raises
        ------
        InputError
            If it has fewer positions than a sequence has tokens, or fewer tokens in its vocabulary than the tokenizer,
            or there are targets and no decoder, or the other way round.
        """
        self._check_decoder(model)
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
        if self._targets is not None:
            batch |= self._decoder(self._targets[index * self._size : (index + 1) * self._size])
        return batch

    def _decoder(self, targets: list[list[int]]) -> dict[str, torch.Tensor]:
        """What the decoder gets; models shift labels themselves, each in its own way."""
        width = max(map(len, targets))
        labels = torch.tensor([ids + [IGNORED] * (width - len(ids)) for ids in targets])
        if self._start is None:
            return {"labels": labels}
        first = torch.full((len(targets), 1), self._start)
        inputs = torch.cat([first, labels[:, :-1]], 1)
        counts = (labels != IGNORED).long()
        return {
            "decoder_input_ids": torch.where(inputs == IGNORED, self._padding["input_ids"], inputs),
            "decoder_attention_mask": counts,
        }

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))
