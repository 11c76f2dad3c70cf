"""The move of rows from one database to another."""
