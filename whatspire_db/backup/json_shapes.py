"""What JSON from a file has to look like before anybody works with it: a shape is built as the document itself is."""

from __future__ import annotations

from typing import Any

# A type; a range of whole numbers; a constant; {shape, shape}: either; [shape]: a list of any length of it;
# (shape, shape): a list of just these; {"key": shape}: an object with at least these keys; {...: shape}: with any keys.
Shape = Any


def fits(value: Any, shape: Shape) -> bool:
    """Tell whether what was read from JSON has a shape; True is no number, and 1.0 no whole one."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and _has_fields(value, shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, tuple):
        return isinstance(value, list) and len(value) == len(shape) and all(map(fits, value, shape))
    if isinstance(shape, set):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, range):
        return type(value) is int and value in shape
    if isinstance(shape, type):
        return type(value) is shape
    return type(value) is type(shape) and bool(value == shape)


def _has_fields(value: dict[str, Any], shape: dict[Any, Shape]) -> bool:
    if ... in shape:
        return all(fits(item, shape[...]) for item in value.values())
    return all(key in value and fits(value[key], one) for key, one in shape.items())


def levels(value: Any) -> int:
    """Return how many lists and objects a value stands in at most."""
    if not isinstance(value, dict | list):
        return 0
    items = value.values() if isinstance(value, dict) else value
    return 1 + max(map(levels, items), default=0)
