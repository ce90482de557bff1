"""A second thread on one channel finds incumbents and changes no proof."""

import numpy as np
import pytest

import layerbounds as lb
from layerbounds.search.quantization import channel_search as quantization


def hard_problem(n=100):
    rng = np.random.default_rng(7)
    inputs = rng.normal(size=(400, n)) @ (rng.normal(size=(n, n)) + 2.0)
    return lb.quantization_problem(lb.Layer.from_activations(rng.normal(size=(2, n)), inputs), bits=3)


@pytest.mark.slow
def test_one_channel_uses_the_threads_that_are_left(monkeypatch):
    seen = []

    class Spy(quantization.Companion):
        def __init__(self, neighbourhoods, control, most):
            seen.append(neighbourhoods.value)
            super().__init__(neighbourhoods, control, most)

        def stop(self):
            super().stop()
            seen.append(self.best()[0])
            assert not self._thread.is_alive()

    monkeypatch.setattr(quantization, "Companion", Spy)
    problem = hard_problem()
    solution = lb.solve(problem, channels=[0], time_limit=2.0, jobs=2)
    # It is stopped once its work is done, and again at the end whatever happened.
    assert len(seen) >= 2 and seen[-1] <= seen[0]
    assert 0 < solution.lower_bound[0] <= solution.upper_bound[0]
    error = lb.evaluate(problem, np.stack([solution.weights[0]] * 2)).error[0]
    assert error == pytest.approx(solution.upper_bound[0], rel=1e-9)
    assert all(a.upper >= b.upper for a, b in zip(solution.trace[0], solution.trace[0][1:], strict=False))


@pytest.mark.parametrize("options", [{"jobs": 1}, {"jobs": 2, "node_limit": 20_000}])
def test_without_spare_threads_or_with_a_node_limit_there_is_none(monkeypatch, options):
    monkeypatch.setattr(quantization, "Companion", None)  # calling it would fail
    solution = lb.solve(hard_problem(), channels=[0], time_limit=1.0, **options)
    assert solution.lower_bound[0] > 0


def test_the_answer_stays_the_same(monkeypatch):
    monkeypatch.setattr(quantization, "CLOSE_AT_ONCE", 0)
    monkeypatch.setattr(quantization, "ATTEMPTS", ())
    rng = np.random.default_rng(3)
    layer = lb.Layer.from_activations(rng.normal(size=(1, 24)), rng.normal(size=(96, 24)))
    problem = lb.quantization_problem(layer, bits=3)
    one, two = (lb.solve(problem, time_limit=30, jobs=jobs) for jobs in (1, 2))
    assert one.status[0] == two.status[0] == lb.Status.OPTIMAL
    np.testing.assert_allclose(one.upper_bound, two.upper_bound, rtol=1e-6)
    np.testing.assert_allclose(one.lower_bound, two.lower_bound, rtol=1e-6)
