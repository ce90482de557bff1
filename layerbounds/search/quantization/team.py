"""Several threads in one depth-first search: who has nothing left takes over half of what another has still open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from layerbounds.arrays import Int
from layerbounds.search.quantization.tree import Tree


class Team:
    """Threads that go on together with a search until nothing below its cut is left, or until they are told to stop.

    Each has its own path through the tree (`Tree.fork`). Between two short runs of the kernel it takes over the lowest
    cut, and hands open siblings to whoever waits (`Tree.give`). In the end the first tree has what all have seen.

    Parameters
    ----------
    tree : Tree
    threads : int
    chunk : int
        Nodes of a run.
    stop : callable
        From the nodes of all threads so far to whether to stop.
    learn : bool
        As in `Tree.run`.
    most_leaves : int or None
        Collect the leaves below the cut, up to one more than this; None: lower the cut to the best.
    """

    def __init__(
        self,
        tree: Tree,
        threads: int,
        chunk: int,
        stop: Callable[[int], bool],
        learn: bool = False,
        most_leaves: int | None = None,
    ) -> None:
        self.leaves: list[Int] = []
        self._trees = [tree] + [tree.fork() for _ in range(threads - 1)]
        self._chunk = chunk
        self._stop = stop
        self._learn = learn
        self._most_leaves = most_leaves
        self._nodes = int(tree.nodes[0])
        self._cut = tree.cut
        self._found: Int | None = None
        self._waiting: list[Tree] = []
        self._over = self._exhausted = False
        self._changed = threading.Condition()

    def run(self) -> bool:
        """Search; True when nothing below the cut is left, else what is open is lost. An exception ends all threads."""
        first, *others = self._trees
        with ThreadPoolExecutor(max_workers=max(len(others), 1)) as pool:
            pending = [pool.submit(self._work, other) for other in others]
            self._work(first)
            for future in pending:
                future.result()
        for other in others:
            first.join(other)
        if self._found is not None:
            first.adopt(self._cut, self._found)
        if self._exhausted:
            first.close()
        return self._exhausted

    def _work(self, tree: Tree) -> None:
        collect = self._most_leaves is not None
        try:
            while self._has_work(tree):
                tree.lower(self._cut)
                before = int(tree.nodes[0])
                tree.run(self._chunk, self._learn, collect)
                leaf = tree.take() if collect else None
                with self._changed:
                    self._nodes += int(tree.nodes[0]) - before
                    if tree.cut < self._cut:
                        self._cut, self._found = tree.cut, tree.found
                    if leaf is not None:
                        self.leaves.append(leaf)
                    many = self._most_leaves is not None and len(self.leaves) > self._most_leaves
                    if many or self._stop(self._nodes):
                        self._end()
        except BaseException:
            with self._changed:
                self._end()
            raise

    def _end(self) -> None:
        self._over = True
        self._changed.notify_all()

    def _has_work(self, tree: Tree) -> bool:
        """Whether to go on: hands work to who waits, or waits for some; False at the end of the search."""
        with self._changed:
            if tree.exhausted and not self._over:
                self._waiting.append(tree)
                if len(self._waiting) == len(self._trees):
                    self._exhausted = True
                    self._end()
                while tree.exhausted and not self._over:
                    self._changed.wait()
            while self._waiting and not self._over and tree.give(self._waiting[0]):
                del self._waiting[0]
                self._changed.notify_all()
            return not self._over
