"""What each engine needs for a search: functions on SQLite, an extension and its settings on PostgreSQL."""
