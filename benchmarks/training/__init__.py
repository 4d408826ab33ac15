"""Programs that measure training: what each part is worth and what it costs."""
