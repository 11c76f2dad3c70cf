"""Vectors in clusters, as embeddings are: those of one topic are close to each other."""

from __future__ import annotations

from typing import Any

import numpy as np

Matrix = Any


def clustered(rows: int, dimensions: int, seed: int = 1, clusters: int = 100) -> Matrix:
    """Return vectors around some centres, in 32 bits."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, dimensions))
    chosen = centres[random.integers(0, clusters, rows)]
    return (chosen + 0.4 * random.normal(size=(rows, dimensions))).astype(np.float32)


def distances(metric: str, stored: Matrix, query: Matrix) -> Matrix:
    """Return the distances of all vectors from one, in 64 bits."""
    stored, query = stored.astype(np.float64), np.asarray(query, np.float32).astype(np.float64)
    if metric == "l2":
        return np.linalg.norm(stored - query, axis=1)
    products = stored @ query
    if metric == "inner_product":
        return -products
    return 1 - products / (np.linalg.norm(stored, axis=1) * np.linalg.norm(query))


def nearest(metric: str, stored: Matrix, query: Matrix, k: int) -> list[tuple[int, float]]:
    """Return the places of the k nearest vectors, from 1 on, and their distances."""
    found = distances(metric, stored, query)
    order = np.lexsort((np.arange(len(stored)), found))[:k]
    return [(int(place) + 1, float(found[place])) for place in order]


def assert_same(found: list[tuple[int, float]], expected: list[tuple[int, float]], scale: float = 1.0) -> None:
    """The same keys in the same order; two may be swapped whose distances differ by less than 1e-6."""
    assert len(found) == len(expected)
    known = dict(expected)
    for (key, distance), (other, wanted) in zip(found, expected, strict=True):
        assert abs(distance - wanted) <= 1e-5 * scale
        assert key == other or abs(known.get(key, distance) - wanted) < 1e-6 * scale, (found, expected)
