"""Programs that measure reading and rendering."""
