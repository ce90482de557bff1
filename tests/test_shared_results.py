"""Results that are computed once."""

from __future__ import annotations

import gc
from functools import partial

from layerbounds.search.shared_results import Recent, once


class Subject:
    """Something that can be referred to weakly."""


def test_once_for_each_object_while_it_lives() -> None:
    calls: list[int] = []

    @once
    def number(subject: Subject) -> int | None:
        """Documented."""
        calls.append(id(subject))
        return None if len(calls) == 1 else len(calls)

    first, second = Subject(), Subject()
    assert [number(first), number(second), number(first), number(second)] == [None, 2, None, 2]
    assert len(calls) == 2
    assert number.__doc__ == "Documented."
    del first
    gc.collect()
    assert [number(second), number(Subject())] == [2, 3]


def test_recent_results_are_kept_and_the_oldest_is_forgotten() -> None:
    calls: list[str] = []

    def compute(key: str) -> str:
        calls.append(key)
        return key.upper()

    recent: Recent[str] = Recent(2)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert recent.get(key, partial(compute, key)) == key.upper()
    # When c came, b had not been asked for the longest.
    assert calls == ["a", "b", "c", "b"]
    recent.clear()
    recent.get("a", lambda: compute("a"))
    assert calls[-1] == "a"
