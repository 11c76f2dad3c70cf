"""The commands: a module for each, with its verbs in VERBS, and what all of them share."""
