"""Options of a configuration on the command line, which argparse leaves over: every key of it is one."""

from collections.abc import Sequence
from typing import Any

from frameattn._errors import UsageError
from frameattn._optional import require
from frameattn.training.config_io import OPEN_SECTIONS, merge

SWITCHES = ("compile", "shard")  # without a value they are true


def parse_overrides(tokens: Sequence[str]) -> dict[str, Any]:
    """``--key value``, ``--key=value``, ``--switch`` and ``--section.key value`` as a nested dictionary."""
    yaml = require("yaml")
    values: dict[str, Any] = {}
    remaining = list(tokens)
    while remaining:
        token = remaining.pop(0)
        if not token.startswith("--"):
            raise UsageError(f"unexpected argument {token!r}: options are written --key value")
        key, has_value, value = token[2:].partition("=")
        if not has_value:
            if remaining and not remaining[0].startswith("--"):
                value = remaining.pop(0)
            elif key in SWITCHES:
                value = "true"
            else:
                raise UsageError(f"--{key} needs a value")
        section, _, inner = key.replace("-", "_").partition(".")
        if section in OPEN_SECTIONS and not inner:
            inner, parsed = "name", value
        else:
            try:
                parsed = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise UsageError(f"--{key} {value}: the value is not YAML") from error
        values = merge(values, {section: {inner: parsed} if inner else parsed})
    return values
