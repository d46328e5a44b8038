"""Configurations as plain values: YAML files, sections put over one another, and every value checked.

Every key has one meaning and one type; a wrong key is answered with the nearest right one. ``model`` and ``data`` are
open sections: besides ``name`` they hold the arguments of ``create_model`` and ``create_dataset``.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from frameattn._errors import UsageError
from frameattn._optional import require
from frameattn.models.registry import is_text_to_video
from frameattn.training.config import TEXT_SAMPLING, Config, Diffusion, Named, Sampling, Stage

OPEN_SECTIONS = ("model", "data")


def read_config(path: Path, over: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a YAML file with other values put over it."""
    return build_config(merge(load_yaml(path), over or {}))


def load_yaml(path: Path) -> dict[str, Any]:
    yaml = require("yaml")
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"config {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    if values is not None and not isinstance(values, dict):
        raise UsageError(f"config {path} must hold `key: value` lines, got a {type(values).__name__}")
    return nest_names(values or {})


def nest_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """``model: NAME`` is short for ``model: {name: NAME}``, and ``data`` likewise."""
    return {k: {"name": str(v)} if k in OPEN_SECTIONS and not isinstance(v, dict) else v for k, v in values.items()}


def merge(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """values with those of over in their place; sections are merged key by key."""
    merged = dict(values)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


def with_saved(values: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """values with those of a run under them that its data or Latte decided; its Latte stays, for it has the weights."""
    if not saved:
        return dict(values)
    kept = {key: saved.get(key) for key in ("data", "latte", "freeze_latte")}
    values = {**kept, **values, "latte": kept["latte"]}
    if values.get("model", {}).get("name") == saved["model"]["name"]:
        values["model"] = {**saved["model"], **values["model"]}
    return values


def build_config(values: dict[str, Any]) -> Config:
    """A Config from plain values, every one of them checked."""
    if "data" not in values:
        raise UsageError("data is missing: --data FOLDER or the name of a data set")
    if is_text_to_video(values.get("model", {}).get("name", "")):
        values = merge({"sampling": vars(TEXT_SAMPLING)}, values)
    return _build(Config, values, "")


def config_values(config: Config) -> dict[str, Any]:
    """The plain values that build_config makes the same configuration of."""
    values = dataclasses.asdict(config)
    values["betas"] = list(config.betas)
    return {**values, "model": config.model.flat(), "data": config.data.flat()}


def save_config(config: Config, path: Path) -> None:
    path.write_text(require("yaml").safe_dump(config_values(config), sort_keys=False))


def _build(kind: type, values: dict[str, Any], prefix: str) -> Any:
    types = get_type_hints(kind)
    for key in values:
        if key not in types:
            raise UsageError(_unknown_key(prefix + str(key)))
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [key for key in required if key not in values]:
        raise UsageError(f"{prefix}{missing[0]} is missing")
    return kind(**{key: convert(value, types[key], prefix + key) for key, value in values.items()})


def convert(value: Any, kind: Any, key: str) -> Any:
    """value as kind, or an error that says what key expects."""
    if kind is Named and isinstance(value, dict):
        if "name" not in value:
            raise UsageError(f"{key}.name is missing")
        return Named(str(value["name"]), {k: _number(v) for k, v in value.items() if k != "name"})
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _build(kind, value, key + ".")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):  # int | None is the second from Python 3.14 on
        return None if value is None else convert(value, arguments[0], key)
    if origin is Literal and value in arguments:
        return value
    if origin is list and isinstance(value, list):
        return [convert(v, arguments[0], f"{key}[{i}]") for i, v in enumerate(value)]
    if origin is tuple and isinstance(value, (list, tuple)) and len(value) == len(arguments):
        return tuple(convert(v, a, key) for v, a in zip(value, arguments, strict=True))
    if kind is str and not isinstance(value, (dict, list)) and value is not None:
        return str(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(number := _number(value), (int, float)) and not isinstance(value, bool):
        return float(number)
    raise UsageError(f"{key} must be {_describe(kind)}, got {value!r}")


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as text (it wants 1.0e-3): text that is a number becomes one."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _describe(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return f"a section with {', '.join(get_type_hints(kind))}"
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return "a list like [{steps: 1000, batch: 4, frames: 16}]"
    if get_origin(kind) is tuple:
        return f"a list of {len(get_args(kind))} numbers"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def _unknown_key(key: str) -> str:
    known = list(get_type_hints(Config)) + [
        f"{section}.{inner}"
        for section, kind in get_type_hints(Config).items()
        if kind in (Diffusion, Sampling)
        for inner in get_type_hints(kind)
    ]
    if key.startswith("stages"):
        known = [f"{key.rpartition('.')[0]}.{inner}" for inner in get_type_hints(Stage)]
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"unknown key {key}: did you mean {nearest[0]}?"
