"""Programs that write pages, tables and pictures of the docs."""
