"""Influence tables become a page that people read. Needs no model and no torch."""
