"""Results for people and for files: tables and JSON."""
