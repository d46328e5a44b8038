"""The entry point of the command ``frameattn``: finds the subcommand and turns errors of the user into exit code 2."""

import argparse
import sys
from collections.abc import Sequence

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
        return COMMANDS[options.command].run(options, rest)
    except (UsageError, MissingExtra) as error:
        print(f"frameattn {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
