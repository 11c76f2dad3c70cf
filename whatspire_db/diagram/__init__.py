"""Pictures of a schema: its tables and references, and where the models and the database differ."""
