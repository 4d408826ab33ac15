"""Where a process computes."""

import torch


def on_cpu() -> bool:
    """Whether there is no accelerator: processes on CPUs join forces only if told so."""
    return not torch.accelerator.is_available()
