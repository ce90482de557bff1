"""Re-fitted biases: what centring costs."""

from __future__ import annotations

import numpy as np
import pytest

from layerbounds.exceptions import InputError
from layerbounds.layers.bias import apply_bias
from layerbounds.layers.layer import Layer


def test_variances_lost_in_float32_are_refused(rng: np.random.Generator) -> None:
    x = rng.normal(size=(400, 5))
    x[:, 1] += 3000.0
    weight = rng.normal(size=(3, 5))
    exact = Layer.from_activations(weight, x, "a")
    assert apply_bias(exact, "refit").gram[0, 1, 1] == pytest.approx(np.var(x[:, 1]), rel=1e-6)
    rough = Layer(weight, exact.gram.astype(np.float32), "a", input_mean=exact.input_mean)
    with pytest.raises(InputError, match=r"input 1 has mean square 9e.06 and variance .*, whose digits are lost"):
        apply_bias(rough, "refit")
    assert apply_bias(rough, "keep") is rough
    # Large means of all inputs leave negative eigenvalues, which are set to zero.
    raised = Layer.from_activations(weight, x + 3000.0, "a")
    rough = Layer(weight, raised.gram.astype(np.float32), "a", input_mean=raised.input_mean)
    assert rough.gram_reports[0].projected
    with pytest.raises(InputError, match="digits are lost"):
        apply_bias(rough, "refit")
    # A constant is a constant in any precision, and an ordinary mean costs ordinary digits.
    x[:, 1] = 3000.0
    x[:, 2] += 30.0
    steady = Layer.from_activations(weight, x, "a")
    rough = Layer(weight, steady.gram.astype(np.float32), "a", input_mean=steady.input_mean)
    centred = apply_bias(rough, "refit").gram[0]
    assert centred[1, 1] == 0.0 and centred[2, 2] == pytest.approx(np.var(x[:, 2]), rel=1e-3)
