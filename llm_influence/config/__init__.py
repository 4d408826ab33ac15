"""Configuration: pydantic models that declare every option once, for YAML, Python, CLI and docs."""
