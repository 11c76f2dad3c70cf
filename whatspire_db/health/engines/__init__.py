"""What a health check asks each engine; a module an engine, named as the engine is, with the same functions."""
