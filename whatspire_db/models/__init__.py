"""BaseModel, what its rows remember, and the service's tables."""
