"""Pictures of schemas: their values, their formats, the command, and what a browser makes of them."""
