"""The commands: a module a verb, and what all of them share."""
