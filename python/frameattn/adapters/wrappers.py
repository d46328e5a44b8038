"""What torch and peft put around models and their modules."""

from torch import nn

# Each holds a module by this name, and puts the name into those of all modules within.
_HOLDERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within torch.compile, DataParallel, DistributedDataParallel, FSDP, a checkpoint wrapper and peft's
    models, in any order. All of them call the model, so that its hooks run."""
    inner = _within(model)
    return model if inner is None else unwrapped(inner)


def plain_name(name: str) -> str:
    """The name that a module has when none of its parents is wrapped."""
    for holder in _HOLDERS:
        name = name.replace(f"{holder}.", "")
    return name


def _within(model: nn.Module) -> nn.Module | None:
    children = model._modules  # not getattr, which some wrappers pass on to what they hold
    for name in _HOLDERS:
        if name in children:
            return children[name]
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    if type(model).__module__.partition(".")[0] == "peft":  # PeftModel and the tuner within it
        return children.get("base_model") or children.get("model")
    return None
