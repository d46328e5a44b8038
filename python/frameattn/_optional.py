"""Optional dependencies: training, sampling and video files need more than torch and numpy, and say so."""

import importlib
from types import ModuleType


class MissingExtra(ImportError):
    """A package of the optional extra ``video`` is not installed."""


def require(module: str) -> ModuleType:
    """Imports a module of the optional extra ``video``.

    Raises:
        MissingExtra: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f'{module} does not import ({error}): pip install "frameattn[video]"') from error
