"""Vectors in clusters, as embeddings are: those of one topic are close to each other."""

from __future__ import annotations

from typing import Any

import numpy as np

Matrix = Any


def clustered(rows: int, dimensions: int, seed: int = 1, clusters: int = 100) -> Matrix:
    """Return vectors around some centres, in 32 bits; the centres are the same for every seed."""
    centres = np.random.default_rng(0).normal(size=(clusters, dimensions))
    random = np.random.default_rng(seed)
    chosen = centres[random.integers(0, clusters, rows)]
    return (chosen + 0.4 * random.normal(size=(rows, dimensions))).astype(np.float32)


def distances(metric: str, stored: Matrix, queries: Matrix) -> Matrix:
    """Return the distances of all vectors from some, a line for each of these, in 64 bits."""
    stored, queries = (np.asarray(vectors, np.float32).astype(np.float64) for vectors in (stored, queries))
    products = queries @ stored.T
    if metric == "inner_product":
        return -products
    lengths, others = np.linalg.norm(stored, axis=1), np.linalg.norm(queries, axis=1)[:, None]
    if metric == "l2":
        return np.sqrt(np.maximum(lengths**2 + others**2 - 2 * products, 0))
    return 1 - products / (lengths * others)


def first(found: Matrix, k: int) -> list[tuple[int, float]]:
    """Return the places of the k least distances, from 1 on, and these."""
    order = np.lexsort((np.arange(len(found)), found))[:k]
    return [(int(place) + 1, float(found[place])) for place in order]


def nearest(metric: str, stored: Matrix, query: Matrix, k: int) -> list[tuple[int, float]]:
    """Return the places of the k nearest vectors, from 1 on, and their distances."""
    return first(distances(metric, stored, [query])[0], k)


def assert_same(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    """The same keys in the same order; two may be swapped whose distances differ by less than 1e-6."""
    assert len(found) == len(expected)
    known = dict(expected)
    for (key, distance), (other, wanted) in zip(found, expected, strict=True):
        assert abs(distance - wanted) <= 1e-5
        assert key == other or abs(known.get(key, distance) - wanted) < 1e-6, (found, expected)
