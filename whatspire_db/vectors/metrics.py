"""The distances between vectors by which one can search: what each engine calls them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A distance; the lower, the closer.

    :param operator: pgvector's.
    :param opclass: the end of the name of pgvector's operator class for an index.
    :param extension: sqlite-vec's function, where it has one.
    :param function: our own function on SQLite.
    """

    name: str
    operator: str
    opclass: str
    extension: str | None
    function: str


COSINE = Metric("cosine", "<=>", "cosine_ops", "vec_distance_cosine", "whatspire_cosine_distance")
L2 = Metric("l2", "<->", "l2_ops", "vec_distance_l2", "whatspire_l2_distance")
INNER_PRODUCT = Metric("inner_product", "<#>", "ip_ops", None, "whatspire_max_inner_product")

METRICS = {metric.name: metric for metric in (COSINE, L2, INNER_PRODUCT)}
