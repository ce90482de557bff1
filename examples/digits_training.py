"""What the experiments of docs/training.md share: dense networks, runs that are kept in files, and their statistics.

Every experiment is one command with a folder for its results. What is finished stays there, one file for each run, and
the same command goes on from it; at the end it writes its figures as CSV and JSON into the folder, and with --docs its
tables into a Markdown file, between the marks that carry its name.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn
from train_demo import DigitsNet, initial_network, load_split, preprocess, train

import layerbounds as lb
from layerbounds.layers.files import atomic_path
from layerbounds.report.files import write_csv, write_json
from layerbounds.training import Finetuned, finetune
from layerbounds.training.losses import per_sample

#: Networks, each with its own first weights and its own shuffling; the images are the same for all.
SEEDS = (0, 1, 2, 3, 4)
#: Of every fine-tuning of digits.
EPOCHS, BATCH = 20, 128
#: First rates of the weights; step sizes have a tenth of them.
RATES = (2e-3, 1e-2)
CONFIDENCE = 0.95

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Digits:
    """Images for training, calibration and testing, in float32."""

    x: Tensor
    y: Tensor
    calibration: Tensor
    test_x: Tensor
    test_y: Tensor


def digits() -> Digits:
    """The division of the demo network."""
    split = load_split()
    return Digits(
        split.train_images.float(),
        split.train_labels,
        split.calibration_images.float(),
        preprocess(split.test_images).float(),
        torch.from_numpy(split.test_labels.astype(np.int64)),
    )


def dense_network(folder: Path, seed: int, data: Digits) -> DigitsNet:
    """The network trained from the first weights of a seed; once, then from its file."""
    network = initial_network(seed).float()
    file = folder / f"dense-{seed}.safetensors"
    if not file.exists():
        train(network, data.x, data.y)
        with atomic_path(file) as temporary:
            save_file(network.state_dict(), temporary)
    network.load_state_dict(load_file(file))
    return network.eval()


def tune(
    network: nn.Module,
    data: Digits,
    schedule: str,
    seed: int,
    rates: Sequence[float] = RATES,
    epochs: int | None = None,
    **arguments: Any,
) -> Finetuned:
    """A fine-tuning, with the rate of least loss on the training images: no method may suffer from that of another."""
    found = []
    for rate in rates:
        result = finetune(
            network, (data.x, data.y), schedule, epochs=epochs or EPOCHS, batch_size=BATCH, learning_rate=rate,
            scale_rate=rate / 10, seed=seed, **arguments,
        )  # fmt: skip
        found.append((float(per_sample(result.model, data.x, data.y)[0].mean()), result))
    return min(found, key=lambda pair: pair[0])[1]


def outcome(network: nn.Module, data: Digits) -> dict[str, NDArray[Any]]:
    """Loss and correctness on every test image."""
    losses, correct = per_sample(network.eval(), data.test_x, data.test_y)
    return {"loss": losses.double().numpy(), "correct": correct.numpy()}


def kept(folder: Path, key: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of a run: from its file, or made and put there."""
    file = folder / f"{key}.npz"
    if not file.exists():
        # Of the processor: other programs may run beside this one.
        begin = time.process_time()
        made = {name: np.asarray(value) for name, value in make().items()}
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, seconds=time.process_time() - begin, **made)
        print(f"{key}: {time.process_time() - begin:.1f} s", flush=True)
    with np.load(file, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


@dataclass(frozen=True)
class Estimate:
    """A mean over networks and images with its standard error, and its interval of 95 %.

    Both the networks and the images are drawn, so that the variances of both means add up (the usual estimate for
    crossed random effects, a little too large); the interval takes Student's t for the networks.
    """

    mean: float
    error: float
    half: float

    @property
    def decided(self) -> bool:
        """Whether zero is outside of the interval."""
        return abs(self.mean) > self.half

    def text(self, digits: int = 3) -> str:
        """Mean ± half the interval."""
        return f"{self.mean:+.{digits}f} ± {self.half:.{digits}f}"


def estimate(values: Matrix) -> Estimate:
    """The mean of values of shape (networks, images)."""
    networks, images = values.shape
    variance = values.mean(axis=1).var(ddof=1) / networks + values.mean(axis=0).var(ddof=1) / images
    error = math.sqrt(variance)
    return Estimate(float(values.mean()), error, error * float(stats.t.ppf(0.5 + CONFIDENCE / 2, networks - 1)))


def share(correct: NDArray[np.bool_]) -> str:
    """Accuracy in percent with its standard error."""
    value = estimate(correct.astype(np.float64))
    return f"{100 * value.mean:.1f} ± {100 * value.error:.1f}"


def verdict(value: Estimate, less: str, more: str) -> str:
    """Which of two is better by a difference of losses, or that it is not decided."""
    return (less if value.mean < 0 else more) if value.decided else "not decided"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def insert(docs: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of an experiment in a Markdown file."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    whole = docs.read_text(encoding="utf-8")
    if begin not in whole or end not in whole:
        raise lb.LayerboundsError(f"{docs} has no marks {begin} and {end}; add them where the tables belong.")
    head, rest = whole.split(begin, 1)
    tail = rest.split(end, 1)[1]
    with atomic_path(docs) as temporary:
        temporary.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


def main(
    name: str,
    description: str,
    run: Callable[[Path], tuple[list[dict[str, Any]], dict[str, Any], str]],
    pictures: Sequence[str] = (),
) -> int:
    """Run an experiment from the command line.

    Parameters
    ----------
    name : str
        Of its files and of its marks.
    description : str
    run : callable
        From the folder to rows for the CSV file, a record for the JSON file, and the tables.
    pictures : sequence of str
        Files in the folder that go beside the Markdown file, into its folder of figures.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("training-results"), help="folder of the results")
    parser.add_argument("--docs", type=Path, help="Markdown file that gets the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        rows, record, text = run(options.out)
        write_csv(options.out / f"{name}.csv", rows)
        write_json(options.out / f"{name}.json", record)
        if options.docs is not None:
            insert(options.docs, name, text)
            for picture in pictures:
                shutil.copyfile(options.out / picture, options.docs.parent / "figures" / picture)
    except lb.LayerboundsError as error:
        print("error:", error, file=sys.stderr)
        return 2
    print(text)
    return 0


def seconds(runs: Sequence[Mapping[str, NDArray[Any]]]) -> float:
    """Seconds of the processor that the runs took, as their files say."""
    return float(sum(float(run["seconds"]) for run in runs))
