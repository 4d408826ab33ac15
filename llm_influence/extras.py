"""Optional libraries, imported when they are used and named when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from llm_influence.errors import ConfigError


def require(module: str, *, extra: str, purpose: str) -> Any:  # noqa: ANN401 - any module
    """Import an optional library.

    Args:
        module: The module to import, such as ``"matplotlib.pyplot"``.
        extra: The extra of llm-influence that brings it.
        purpose: What it is needed for, for the message.

    Raises:
        ConfigError: It is not installed; the message holds the pip line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ConfigError(
            f"{library} cannot be imported ({error})",
            where=purpose,
            expected=f"{library} to be installed",
            fix=f"pip install 'llm-influence[{extra}]'",
        ) from error
