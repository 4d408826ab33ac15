"""Histories become tokens, and every token knows the event and field it belongs to."""
