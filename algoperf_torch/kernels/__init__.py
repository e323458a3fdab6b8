"""Compiled kernels, a folder for each operation."""

import importlib
import pkgutil


def register_all() -> None:
    """Registers every operation with `torch.library`, which otherwise happens when its folder is first imported."""
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            importlib.import_module(f"{__name__}.{module.name}")
