"""The move of a database's rows to another one, with proof."""
