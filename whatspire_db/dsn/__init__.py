"""Connection strings: which engine one is for, what it says, and what of it may be repeated."""
