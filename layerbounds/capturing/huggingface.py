"""Model directories in the layout of `transformers`: config.json, safetensors (sharded or not), a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from layerbounds.exceptions import FileFormatError, InputError, MissingExtraError


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
    """Keep the loading bar of transformers off standard error."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
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
        If the directory cannot be loaded.
    """
    transformers = _transformers()
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        names = getattr(config, "architectures", None) or []
        owner = getattr(transformers, names[0], None) if names else None
        loader = owner if owner is not None else transformers.AutoModel
        with _quiet(transformers):
            # The checkpoint's own precision: what is captured is what the model computes.
            model: nn.Module = loader.from_pretrained(folder, use_safetensors=True, dtype="auto", local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise FileFormatError(
            f"{folder} cannot be loaded as a model directory ({str(error).splitlines()[0]}); it needs config.json and "
            "safetensors files."
        ) from error
    return model


class TextBatches(Sequence[Any]):
    """The non-empty lines of a text file as batches of token ids with their attention masks.

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
    """

    def __init__(self, folder: Path, text: Path, size: int, limit: int | None, max_tokens: int) -> None:
        if size < 1:
            raise InputError(f"the batch size is {size}; pass a positive number.")
        try:
            lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise FileFormatError(f"{text} cannot be read as UTF-8 text ({error}); check the path.") from error
        self.lines = [line for line in lines if line][:limit]
        if not self.lines:
            raise InputError(f"{text} holds no line of text.")
        try:
            self._tokenizer = _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            if isinstance(error, MissingExtraError):
                raise
            raise FileFormatError(
                f"{folder} has no usable tokenizer ({str(error).splitlines()[0]}); add its tokenizer files."
            ) from error
        if self._tokenizer.pad_token is None:
            # Padded positions are masked, so that any token will do.
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token
        self._size, self._max_tokens = size, max_tokens

    def __len__(self) -> int:
        return -(-len(self.lines) // self._size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        lines = self.lines[index * self._size : (index + 1) * self._size]
        return dict(
            self._tokenizer(lines, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt")
        )

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))
