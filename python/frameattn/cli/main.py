"""The entry point of the command ``frameattn``: finds the subcommand and turns errors of the user into exit code 2."""

import argparse
import os
import select
import sys
from collections.abc import Sequence
from typing import TextIO

from frameattn._errors import UsageError
from frameattn._optional import MissingExtra
from frameattn.cli import bench_swap, compare, encode, info, sample, train

COMMANDS = {
    "encode": encode,
    "train": train,
    "sample": sample,
    "compare": compare,
    "bench-swap": bench_swap,
    "info": info,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``frameattn`` with arguments (of the process if None) and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="frameattn",
        description="Train and sample video diffusion transformers with Matrix Attention (FrameDiT), and compare those "
        "of diffusers with VMonarch attention to themselves.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, module in COMMANDS.items():
        summary, _, details = (module.__doc__ or "").partition("\n")
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=details.strip("\n"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(subparser)
    options, rest = parser.parse_known_args(arguments)
    try:
        code = COMMANDS[options.command].run(options, rest)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _is_left(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its exit
        return 1
    except (UsageError, MissingExtra) as error:
        print(f"frameattn {options.command}: {error}", file=sys.stderr)
        return 2


def _is_left(stream: TextIO) -> bool:
    """Whether who read a pipe has seen enough: frameattn info | head -3. The end of another pipe is an error."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
