"""Behaviour logs: reading, sorting into histories, splitting."""
