"""No pruned weights of a real layer lie below its certified lower bound: thousands of points on every layer."""

import os

import numpy as np
import pytest

import layerbounds as lb

POINTS = 3000
LAYERS = {
    "linear": "resnet20_layers.safetensors",
    "layer1.0.conv1": "resnet20_layers.safetensors",
    "layer2.1.conv1": "resnet20_layers.safetensors",
    "layer3.2.conv2": "resnet20_layers.safetensors",
    "encoder.layer.0.attention.self.query": "minilm_layers.safetensors",
    "encoder.layer.2.attention.output.dense": "minilm_layers.safetensors",
    "encoder.layer.3.output.dense": "minilm_layers.safetensors",
}
#: Its preparation takes half a minute or more.
LONG = "encoder.layer.3.output.dense"


def load(reference_data, name):
    if name == LONG and not os.environ.get("LAYERBOUNDS_FUZZ"):
        pytest.skip("the preparation of 1536 inputs is slow; set LAYERBOUNDS_FUZZ=1 to run it")
    return lb.load_layers(reference_data / LAYERS[name])[name]


def errors(layer, channel, points):
    """Mean squared output error of many weights of one channel, shape (points, inputs)."""
    deviations = points - layer.target[channel]
    return np.einsum("ij,ij->i", deviations @ layer.channel_gram(channel), deviations) + layer.constant[channel]


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.25, None], ids=["unstructured", "2:4"])
@pytest.mark.parametrize("name", LAYERS)
def test_pruned_points(reference_data, name, density):
    layer = load(reference_data, name)
    chosen = {"density": density} if density is not None else {"pattern": "2:4"}
    problem = lb.pruning_problem(layer, **chosen)
    solution = lb.solve(problem, "native", channels=[1], time_limit=0.5, jobs=1)
    rng = np.random.default_rng(0)
    n = layer.in_features
    points = np.zeros((POINTS, n))
    best = solution.weights[0].reshape(-1)
    support = np.flatnonzero(best)
    for i in range(POINTS):
        if i % 3 == 0:
            # The best mask with noise on what it keeps.
            points[i, support] = best[support] * (1.0 + 0.03 * rng.normal(size=len(support)))
        elif density is None:
            groups = rng.random((-(-n // 4), 4)).argsort(axis=1) < 2
            points[i] = layer.matrix[1] * groups.ravel()[:n]
        else:
            scores = np.abs(layer.matrix[1]) * rng.uniform(0.2, 1.0, n)
            kept = np.argsort(-scores)[: int(density * n)]
            points[i, kept] = layer.matrix[1, kept] * (1.0 + 0.1 * rng.normal(size=len(kept)))
    assert np.all(
        lb.evaluate(lb.pruning_problem(layer, **chosen), np.tile(points[1], (layer.out_features, 1))).feasible
    )
    found = errors(layer, 1, points)
    assert 0.0 <= solution.lower_bound[0] <= solution.upper_bound[0]
    assert solution.lower_bound[0] <= found.min() * (1 + 1e-12)
