"""Vectors on both engines: a field, distances in queries, search for the nearest rows, and inserts in bulk."""
