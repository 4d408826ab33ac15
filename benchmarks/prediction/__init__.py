"""Programs that measure what is predicted."""
