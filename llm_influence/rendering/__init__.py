"""From a history to tokens that know which event and field they belong to."""
