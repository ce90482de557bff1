"""The training itself: epochs, steps, checkpoints at the ends of epochs, the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from layerbounds.arguments import shown
from layerbounds.capturing.checks import check_model, read_device
from layerbounds.capturing.copying import copied
from layerbounds.capturing.state import preserved, seeded
from layerbounds.capturing.targets import unwrap
from layerbounds.exceptions import InputError, LayerboundsError, first_line
from layerbounds.report.files import write_csv
from layerbounds.training.batchnorm import reestimate
from layerbounds.training.checkpoints import fingerprint, read_checkpoint, write_checkpoint
from layerbounds.training.losses import Loss, distillation
from layerbounds.training.records import Finetuned
from layerbounds.training.settings import Prepare, Settings
from layerbounds.training.wrapping import wrap

#: Epochs draw from seeds of their own, so that one after a break draws the same numbers.
_SEEDS_APART = 2**31


class Training:
    """A model with its data and its settings; arguments as in `finetune`."""

    def __init__(
        self,
        model: nn.Module,
        data: tuple[Any, Any],
        settings: Settings,
        *,
        layers: str | Iterable[str] | None,
        activation_layers: str | Iterable[str] | None,
        scales: Mapping[str, Any],
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        loss: Loss | None,
        validation: tuple[Any, Any] | None,
        prepare: Prepare | None,
        device: str | torch.device | None,
    ) -> None:
        check_model(model, "model")
        self.settings = settings
        self._inputs, self._targets = read_samples(data, "data")
        self._validation = None if validation is None else read_samples(validation, "validation")
        self._loss: Loss = functional.cross_entropy if loss is None else loss
        self._prepare = prepare
        place = read_device(device)
        self.model = copied(unwrap(model))
        if place is not None:
            self.model.to(place)
        example = next(self.model.parameters(), None)
        if example is None:
            raise InputError(f"{type(model).__name__} has no parameters; there is nothing to train.")
        self._device = example.device
        self._teacher = copied(self.model).eval().requires_grad_(False) if settings.distill else None
        self.model.requires_grad_(True)
        with preserved(self.model):
            batch = self._batch(torch.arange(min(settings.batch_size, len(self._inputs))))[0]
            self._try(self.model, batch)
        self._layers = wrap(self.model, settings, batch, layers, activation_layers, scales)
        steps = [parameter for layer in self._layers for parameter in layer.scales()]
        known = {id(parameter) for parameter in steps}
        groups = [
            {"params": [p for p in self.model.parameters() if id(p) not in known], "lr": settings.learning_rate},
            {"params": steps, "lr": settings.scale_rate},
        ]
        groups = [group for group in groups if group["params"]]
        try:
            self._optimizer = torch.optim.Adam(groups) if optimizer is None else optimizer(groups)
        except Exception as error:
            raise InputError(
                f"optimizer failed ({type(error).__name__}: {first_line(error)}); pass a function from groups of "
                "parameters to an optimizer of torch.optim."
            ) from error
        if not isinstance(self._optimizer, torch.optim.Optimizer):
            raise InputError(f"optimizer returned {shown(self._optimizer)}; return an optimizer of torch.optim.")
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last may be smaller."""
        return -(-len(self._inputs) // self.settings.batch_size)

    def run(self, checkpoint: Path | None, log: Path | None, progress: Callable[[int, int], None] | None) -> Finetuned:
        """Train to the end, from a checkpoint where there is one."""
        parts = {layer.name: [layer.weight is not None, layer.input is not None] for layer in self._layers}
        starts = [layer.weight.start for layer in self._layers if layer.weight is not None]
        tensors = [self._inputs, self._targets, *(start for start in starts if start is not None)]
        mark = fingerprint({**self.settings.record(), "layers": parts}, self.model, tensors)
        history: list[dict[str, Any]] = []
        kept = None if checkpoint is None else read_checkpoint(checkpoint, mark)
        if kept is not None:
            self.model.load_state_dict(kept["model"])
            self._optimizer.load_state_dict(kept["optimizer"])
            history = kept["history"]
        resumed = len(history)
        if log is not None and history:
            write_csv(log, history)
        with preserved():
            for epoch in range(resumed, self.settings.epochs):
                with seeded(self.settings.seed + _SEEDS_APART * (epoch + 1)):
                    history.append(self._epoch(epoch, progress))
                if checkpoint is not None:
                    content = {
                        "model": self.model.state_dict(), "optimizer": self._optimizer.state_dict(), "history": history,
                    }  # fmt: skip
                    write_checkpoint(checkpoint, content, mark)
                if log is not None:
                    write_csv(log, history)
            with seeded(self.settings.seed):
                return self._finish(history, resumed)

    def _epoch(self, epoch: int, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
        """One pass over the data."""
        self.model.train()
        steps, total = self.steps_per_epoch, self.steps_per_epoch * self.settings.epochs
        order = torch.randperm(len(self._inputs))
        lost = 0.0
        for number, index in enumerate(torch.split(order, self.settings.batch_size)):
            done = epoch * steps + number
            self._advance(done / total)
            factor = 0.5 * (1.0 + math.cos(math.pi * done / total))
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * factor
            lost += self._step(*self._batch(index), done) * len(index)
            if progress is not None:
                progress(done + 1, total)
        row = {
            "epoch": epoch + 1,
            "steps": (epoch + 1) * steps,
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "loss": lost / len(self._inputs),
            "nonzero": self._nonzero(),
            "quantized": any(layer.weight is not None and bool(layer.weight.begun) for layer in self._layers),
        }
        return {**row, **self._validate()}

    def _step(self, x: Any, y: Tensor, number: int) -> float:
        output = self.model(x)
        loss = self._loss(output, y)
        if self._teacher is not None:
            share = self.settings.distill
            with torch.no_grad():
                wanted = self._teacher(x)
            loss = (1.0 - share) * loss + share * distillation(output, wanted, self.settings.temperature)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(f"the loss is {value} at step {number}; choose a smaller learning rate.")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        for layer in self._layers:
            layer.settle()
        return value

    def _advance(self, progress: float) -> None:
        for layer in self._layers:
            layer.advance(progress)

    @torch.no_grad()
    def _nonzero(self) -> float:
        """Fraction of the weights of the layers that the network does not multiply by zero."""
        kept = [layer.used != 0 for layer in self._layers if layer.weight is not None]
        return float(torch.cat([part.flatten() for part in kept]).double().mean()) if kept else 1.0

    @torch.no_grad()
    def _validate(self) -> dict[str, Any]:
        """Loss and accuracy on the samples kept apart."""
        if self._validation is None:
            return {}
        self.model.eval()
        inputs, targets = self._validation
        lost, right = 0.0, 0
        size = self.settings.batch_size
        for x, y in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
            output = self.model(self._prepared(x))
            y = y.to(self._device)
            lost += float(self._loss(output, y)) * len(y)
            right += int((output.argmax(dim=1) == y).sum()) if _classes(output, y) else 0
        row: dict[str, Any] = {"validation_loss": lost / len(inputs)}
        if _classes(output, y):
            row["validation_accuracy"] = right / len(inputs)
        return row

    def _finish(self, history: list[dict[str, Any]], resumed: int) -> Finetuned:
        """Take the parts out, with the weights on their grid."""
        self._advance(1.0)
        layers = {layer.name: layer.export(self.settings) for layer in self._layers if layer.weight is not None}
        inputs = {layer.name: layer.input.describe() for layer in self._layers if layer.input is not None}
        self.model.requires_grad_(True)
        for layer in self._layers:
            layer.unwrap()
        if self.settings.reestimate:
            reestimate(self.model, self._in_order())
        self.model.eval()
        return Finetuned(self.model, layers, inputs, history, self.settings.record(), resumed)

    def _in_order(self) -> Iterator[Any]:
        for x in torch.split(self._inputs, self.settings.batch_size):
            yield self._prepared(x)

    def _batch(self, index: Tensor) -> tuple[Any, Tensor]:
        return self._prepared(self._inputs[index]), self._targets[index].to(self._device)

    def _prepared(self, x: Tensor) -> Any:
        if self._prepare is not None:
            try:
                x = self._prepare(x)
            except LayerboundsError:
                raise
            except Exception as error:
                raise InputError(
                    f"prepare failed on a batch ({type(error).__name__}: {first_line(error)}); correct it."
                ) from error
        return x.to(self._device) if isinstance(x, Tensor) else x

    def _try(self, model: nn.Module, batch: Any) -> None:
        """Run the model and the loss once, so that misfits are found out before the training."""
        try:
            with torch.no_grad():
                output = model.eval()(batch)
                value = self._loss(output, self._batch(torch.arange(len(output)))[1])
        except Exception as error:
            raise InputError(
                f"the model or the loss fails on the first batch ({type(error).__name__}: {first_line(error)}); check "
                "the data, their types and shapes."
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InputError("loss returns no single number; return a tensor such as that of torch's losses.")


def read_samples(value: Any, what: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the same number of samples.

    Raises
    ------
    InputError
        If it is something else.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{what} is {shown(value)}; pass a pair (inputs, targets) of tensors.")
    try:
        inputs, targets = (torch.as_tensor(part).detach() for part in value)
    except Exception as error:
        raise InputError(f"{what} cannot be read as tensors ({first_line(error)}); pass (inputs, targets).") from error
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets) or len(inputs) == 0:
        raise InputError(
            f"{what} has inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}; the first "
            "axis of both are the samples."
        )
    return inputs, targets


def _classes(output: Any, y: Tensor) -> bool:
    """Whether outputs are logits of the classes that targets number."""
    return isinstance(output, Tensor) and output.ndim == 2 and y.ndim == 1 and not y.is_floating_point()
