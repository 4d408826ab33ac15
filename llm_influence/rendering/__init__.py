"""From a history to tokens that are mapped to events and fields."""
