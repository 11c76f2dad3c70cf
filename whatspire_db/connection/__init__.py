"""Connections: connect(), the pool, and the Peewee database on top of it."""
