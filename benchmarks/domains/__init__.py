"""Programs that measure the domains of docs/domains beside their peers."""
