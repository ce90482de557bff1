"""Train the embedded demo network and write its layer file.

A small convolutional network learns scikit-learn's handwritten digits (8x8 images). The script stores its weights,
the Gram matrix of every layer's calibration inputs, and the test images, so that the package can show its bounds on
a trained network without PyTorch. It needs PyTorch and scikit-learn, and less than a minute on one core.

    python examples/train_demo.py                 write layerbounds/demo/digits_cnn.safetensors
    python examples/train_demo.py --out FILE      write somewhere else
    python examples/train_demo.py --check         train again and compare with the file that is there
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "layerbounds" / "demo" / "digits_cnn.safetensors"
PIXEL_MAX = 16.0
TEST_IMAGES = 400
CALIBRATION_IMAGES = 512
STEPS = 200
WARMUP_STEPS = 20
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.01
SEED = 0
TOLERANCE = 1e-6
SELF_CHECK_TOLERANCE = 1e-10

Tensors = dict[str, NDArray[Any]]


class DigitsNet(nn.Module):
    """Three convolutions and a linear layer with ReLU between them.

    Strides take the place of pooling. conv3 (n = 64 inputs per output channel) is small enough to be solved to
    proven optimality, conv2 (n = 144) and fc (n = 96) are not always.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, dtype=torch.float64)
        self.conv2 = nn.Conv2d(16, 16, 3, stride=2, padding=1, dtype=torch.float64)
        self.conv3 = nn.Conv2d(16, 24, 2, stride=2, dtype=torch.float64)
        self.fc = nn.Linear(96, 10, dtype=torch.float64)

    def layers(self) -> dict[str, nn.Conv2d | nn.Linear]:
        """Return the layers by name, in the order in which they are applied."""
        return {"conv1": self.conv1, "conv2": self.conv2, "conv3": self.conv3, "fc": self.fc}

    def layer_inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return what each layer sees for these images, by layer name."""
        inputs = {"conv1": images}
        inputs["conv2"] = functional.relu(self.conv1(images))
        inputs["conv3"] = functional.relu(self.conv2(inputs["conv2"]))
        inputs["fc"] = functional.relu(self.conv3(inputs["conv3"])).flatten(1)
        return inputs

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (images, 10)."""
        logits: Tensor = self.fc(self.layer_inputs(images)["fc"])
        return logits


@dataclass(frozen=True)
class Split:
    """The digits, divided with equal class shares; calibration images are a subset of the training images."""

    train_images: Tensor
    train_labels: Tensor
    calibration_images: Tensor
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


def preprocess(pixels: NDArray[Any]) -> Tensor:
    """Scale pixel values 0..16 to [0, 1] in float64; a division by 16 is exact."""
    return torch.from_numpy(np.asarray(pixels, dtype=np.float64) / PIXEL_MAX)


def load_split() -> Split:
    """Load the digits and divide them into training, calibration and test images."""
    digits = load_digits()
    images, labels = digits.images[:, None].astype(np.uint8), digits.target.astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, shuffle=True, random_state=SEED
    )
    calibration, _ = train_test_split(
        train, train_size=CALIBRATION_IMAGES, stratify=labels[train], shuffle=True, random_state=SEED
    )
    return Split(
        preprocess(images[train]),
        torch.from_numpy(labels[train].astype(np.int64)),
        preprocess(images[calibration]),
        images[test],
        labels[test],
    )


def initial_network(seed: int = SEED) -> DigitsNet:
    """Build the network with seeded He-uniform weights and zero biases.

    Uniform numbers come from integer arithmetic and one multiplication, so that they are the same bits on every
    machine, which normal numbers (logarithm and cosine) need not be.
    """
    generator = torch.Generator().manual_seed(seed)
    network = DigitsNet()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_((2.0 * uniform - 1.0) * math.sqrt(6.0 / parameter[0].numel()))
    return network


def train(network: DigitsNet, images: Tensor, labels: Tensor) -> float:
    """Train in place and return the last loss.

    Few full-batch steps with a short warm-up and a cosine decay: there is no sampling noise, and a difference in the
    last bit of the arithmetic (another BLAS, another processor) is not amplified beyond about 1e-12 in the weights.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loss = torch.zeros(())
    for step in range(STEPS):
        warmup = min(1.0, (step + 1) / WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warmup * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


def round_to_float32(network: DigitsNet) -> None:
    """Round all parameters to float32 values, so that every stored number belongs to the stored weights."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.to(torch.float32))


def input_matrix(module: nn.Conv2d | nn.Linear, inputs: Tensor) -> Tensor:
    """Return X, one row per output position, columns in the order (channel, kh, kw)."""
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        columns = functional.unfold(inputs, module.kernel_size, padding=module.padding, stride=module.stride)
        return columns.transpose(1, 2).reshape(-1, columns.shape[1])
    return inputs.reshape(-1, inputs.shape[-1])


def gram_matrix(x: Tensor) -> Tensor:
    """Return XᵀX/N, exactly symmetric."""
    gram = x.T @ x / x.shape[0]
    return 0.5 * (gram + gram.T)


def gram_mismatch(module: nn.Conv2d | nn.Linear, inputs: Tensor, gram: Tensor, generator: torch.Generator) -> float:
    """Compare the Gram matrix with the module itself for a random change of the weights.

    Returns
    -------
    float
        Largest relative difference over output channels between δᵀGδ and the measured mean squared output change.
    """
    weight = module.weight
    delta = torch.randn(weight.shape, generator=generator, dtype=torch.float64) * weight.std()
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.weight.add_(delta)
        difference = changed(inputs) - module(inputs)
    other_axes = [axis for axis in range(difference.ndim) if axis != 1]
    measured = difference.square().mean(dim=other_axes)
    flat = delta.flatten(1)
    predicted = ((flat @ gram) * flat).sum(dim=1)
    return float(((predicted - measured).abs() / measured).max())


def geometry(module: nn.Conv2d | nn.Linear) -> dict[str, Any]:
    """Return what a reader needs to rebuild the module around its weights."""
    if isinstance(module, nn.Conv2d):
        return {
            "kind": "conv2d",
            "kernel": list(module.kernel_size),
            "stride": list(module.stride),
            "padding": list(module.padding),
        }
    return {"kind": "linear"}


@torch.no_grad()
def describe(network: DigitsNet, split: Split) -> tuple[Tensors, dict[str, str]]:
    """Compute everything that the file holds, with the rounded network evaluated in float64.

    Returns
    -------
    tensors, metadata

    Raises
    ------
    RuntimeError
        If a Gram matrix does not predict the output change of its module.
    """
    tensors: Tensors = {"test_images": split.test_images, "test_labels": split.test_labels}
    layers: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(SEED)
    parameters = network.state_dict()
    inputs = network.layer_inputs(split.calibration_images)
    for name, module in network.layers().items():
        x = input_matrix(module, inputs[name])
        gram = gram_matrix(x)
        mismatch = gram_mismatch(module, inputs[name], gram, generator)
        if not mismatch <= SELF_CHECK_TOLERANCE:
            raise RuntimeError(
                f"{name}: δᵀGδ differs from the measured output change by {mismatch:.1e} (relative); "
                "the inputs are not laid out as the module reads them."
            )
        for key in (f"{name}.weight", f"{name}.bias"):
            tensors[key] = parameters[key].numpy().astype(np.float32)
        tensors[f"{name}.gram"] = gram.numpy()
        tensors[f"{name}.input_mean"] = x.mean(dim=0).numpy()
        layers[name] = {
            "samples": x.shape[0],
            "provenance": {
                "source": "layerbounds demo network on scikit-learn digits",
                "calibration_images": len(split.calibration_images),
                **geometry(module),
            },
        }
    predicted = network(preprocess(split.test_images)).argmax(dim=1).numpy()
    accuracy = float(np.mean(predicted == split.test_labels))
    metadata = {
        "layerbounds.schema": "1",
        "layers": json.dumps(layers),
        "test_accuracy": repr(accuracy),
        "description": (
            "Convolutional network for 8x8 handwritten digits: conv1, conv2, conv3, fc with ReLU between them; "
            "inputs are the pixel values divided by 16. NAME.gram is XᵀX/N in float64 over all output positions of "
            "the calibration images, NAME.input_mean the mean of X. Written by examples/train_demo.py."
        ),
        "source": (
            "Images: Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning "
            "Repository, https://doi.org/10.24432/C50P49, CC BY 4.0), test part, as carried by scikit-learn "
            "(sklearn.datasets.load_digits)."
        ),
    }
    return tensors, metadata


def canonical_bytes(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    """Serialise to the safetensors format with sorted metadata.

    safetensors writes the metadata in the random order of a hash map; sorted, equal content gives equal bytes.
    """
    raw = save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, metadata)
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_file(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file."""
    with safe_open(str(path), framework="np") as handle:
        return load_file(path), dict(handle.metadata() or {})


def first_difference(
    stored: Tensors, stored_metadata: dict[str, str], tensors: Tensors, metadata: dict[str, str]
) -> str | None:
    """Return a clause about the first difference from the stored file, or None where the two agree.

    Floating-point tensors agree within 1e-6 of max(1, largest entry); everything else must be equal.
    """
    if stored.keys() != tensors.keys():
        return f"the tensors {sorted(stored.keys() ^ tensors.keys())} are in only one of the two"
    for name, new in tensors.items():
        old = stored[name]
        if old.shape != new.shape or old.dtype != new.dtype:
            return f"{name} is {old.dtype} {old.shape} in the file and {new.dtype} {new.shape} now"
        # In float64, and written so that a NaN counts as a difference: unsigned integers would wrap around.
        distance = float(np.max(np.abs(old.astype(np.float64) - new.astype(np.float64))))
        exact = not np.issubdtype(new.dtype, np.floating)
        allowed = 0.0 if exact else TOLERANCE * max(1.0, float(np.max(np.abs(new))))
        if not distance <= allowed:
            return f"{name} differs by {distance:.1e} (allowed: {allowed:.1e})"
    for key, value in metadata.items():
        if stored_metadata.get(key) != value:
            return f"the metadata entry {key!r} is {stored_metadata.get(key)!r} in the file and {value!r} now"
    return None


def summary(tensors: Tensors, metadata: dict[str, str]) -> str:
    """Return one line per layer and the accuracy."""
    layers = json.loads(metadata["layers"])
    lines = []
    for name, entry in layers.items():
        weight, gram = tensors[f"{name}.weight"], tensors[f"{name}.gram"]
        dead = int(np.count_nonzero(np.diag(gram) == 0.0))
        shape = "x".join(map(str, weight.shape))
        lines.append(
            f"{name:6} weight {shape:10} inputs per channel {gram.shape[0]:4} (dead {dead})  "
            f"positions {entry['samples']}"
        )
    lines.append(f"test accuracy {metadata['test_accuracy']} on {len(tensors['test_labels'])} images")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Train the embedded demo network and write its layer file.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="layer file (default: the embedded one)")
    parser.add_argument(
        "--check", action="store_true", help="compare a new training run with the file instead of writing it"
    )
    options = parser.parse_args(arguments)
    path: Path = options.out
    # Problems with the file are found out before the training, not after it.
    stored: Tensors = {}
    stored_metadata: dict[str, str] = {}
    if options.check:
        try:
            stored, stored_metadata = read_file(path)
        except (OSError, SafetensorError) as error:
            print(f"{path} cannot be read ({error}); run the script without --check to write it.", file=sys.stderr)
            return 1
    elif not path.parent.is_dir():
        print(f"The folder {path.parent} does not exist; create it first.", file=sys.stderr)
        return 1

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    split = load_split()
    network = initial_network()
    loss = train(network, split.train_images, split.train_labels)
    round_to_float32(network)
    tensors, metadata = describe(network, split)
    print(f"trained on {len(split.train_labels)} images, {STEPS} full-batch steps, last loss {loss:.4f}")
    print(summary(tensors, metadata))

    if options.check:
        difference = first_difference(stored, stored_metadata, tensors, metadata)
        if difference is not None:
            print(f"{path} does not match a new training run: {difference}.", file=sys.stderr)
            return 1
        print(f"{path} matches a new training run ({time.perf_counter() - start:.1f} s)")
        return 0
    content = canonical_bytes(tensors, metadata)
    write_atomically(path, content)
    print(f"wrote {path} ({len(content) / 1024:.0f} KiB, {time.perf_counter() - start:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
