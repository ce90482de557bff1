"""Orders for activations: what each layer sees is what the stages say, in their order."""

from __future__ import annotations

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.exceptions import InputError

torch = pytest.importorskip("torch", reason="capture needs PyTorch")
from torch import nn  # noqa: E402

from layerbounds.capturing.activations import ActivationPruner, ActivationQuantizer  # noqa: E402
from layerbounds.orders.activations import ACTIVATIONS, activation_orders  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:layer .* positions for")


def test_each_order_is_what_its_stages_say():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4)).double()
    x = torch.randn(50, 6, dtype=torch.float64)
    found = activation_orders(model, [x[:20], x[20:]], bits=3, density=0.5)["0"]
    prune, quantize = ActivationPruner(0.5, -1), ActivationQuantizer(3, True, -1)
    seen = {
        "prune": prune(x),
        "quantize": quantize(x),
        "prune, quantize": quantize(prune(x)),
        "quantize, prune": prune(quantize(x)),
    }
    weight = model[0].weight.detach()
    for name in ACTIVATIONS:
        measured = ((seen[name] @ weight.T - x @ weight.T) ** 2).mean(0).numpy()
        assert np.all(found.errors(name)[:, 0] <= measured * (1 + 1e-9))
        assert found.errors(name)[:, 1] == pytest.approx(measured, rel=1e-9)
        least = torch.linalg.lstsq(seen[name], x @ weight.T).solution
        best = ((seen[name] @ least - x @ weight.T) ** 2).mean(0).numpy()
        assert found.repaired(name) == pytest.approx(best, rel=1e-6)
    assert not np.allclose(found.errors("prune, quantize"), found.errors("quantize, prune"))
    totals = found.totals()
    assert all(0 < best <= dense for dense, best in totals.values())


def test_weights_behind_either_order():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)).double()
    images = [torch.randn(30, 2, 4, 4, dtype=torch.float64)]
    found = activation_orders(model, images, "0", bits=2, density=0.5, scheme="static")
    assert list(found) == ["0"]
    for name in ("prune, quantize", "quantize, prune"):
        layer = found["0"].layers[name]
        gap = lb.order_gap(layer, 2, k=4, orders=["PQ", "QP"], channels=[0], jobs=1)
        assert layer.constant[0] > 0 and gap.joint[0, 0] >= layer.constant[0]
        assert gap.settled["PQ"].all() and gap.settled["QP"].all()


def test_batches_that_end_are_refused():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(InputError, match="only once"):
        activation_orders(model, iter([torch.randn(4, 3)]), bits=4, density=0.5)
    with pytest.raises(InputError, match="density"):
        activation_orders(model, [torch.randn(4, 3)], bits=4, density=0.0)
