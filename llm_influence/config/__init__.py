"""The run configuration: one pydantic model for the YAML file, Python and the command line."""
