# The compiled module, csrc/bindings/module.cpp. Documented functions have their types where they call it.
from typing import Any

def __getattr__(name: str) -> Any: ...
