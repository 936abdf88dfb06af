"""Arithmetic of cutting lengths into tiles of powers of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

WASTE = 1.125  # lanes over elements that a tile may cost before a narrower one is looked for


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power(n: int) -> int:
    """The least power of two that is not below `n`."""
    return 1 << max(n - 1, 0).bit_length()


def waste(length: int, tile: int) -> float:
    """Lanes over elements when `length` is cut into pieces of `tile`."""
    return ceil_div(length, tile) * tile / length


def narrowed(tiles: Sequence[int], cost: Callable[[int], float]) -> int:
    """The first of `tiles` with little waste, else the one with least."""
    return next((tile for tile in tiles if cost(tile) <= WASTE), min(tiles, key=cost))
