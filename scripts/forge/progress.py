"""How far something is: a function that is told now and then. `phase.Run.progress` makes one that prints."""

from collections.abc import Callable, Iterable, Iterator

Told = Callable[[int, int], None]  # how many are done, of how many


def untold(done: int, of: int) -> None:
    """For who need not know."""


def counted(items: Iterable, of: int, told: Told) -> Iterator:
    """The items; each is told when it is there."""
    for done, item in enumerate(items, 1):
        told(done, of)
        yield item
