"""Optional dependencies: training, sampling, video files and texts need more than torch and numpy, and say so."""

import importlib
from types import ModuleType


class MissingExtra(ImportError):
    """A package of an optional extra (``video``, or ``text``) is not installed."""


def require(module: str, extra: str = "video") -> ModuleType:
    """Imports a module of an optional extra.

    Raises:
        MissingExtra: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f'{module} does not import ({error}): pip install "frameattn[{extra}]"') from error
