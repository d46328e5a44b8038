"""Stage: another program, run beside ours on the same GPU at the same clocks: --beside "COMMAND".

For a prototype whose rates are a goal. What it prints is kept; nothing of it decides trust.
"""

import os
import shlex
import subprocess
import sys

from benchmarks.gpu_check import parse_stage, show

VARIABLE = "GPU_CHECK_BESIDE"
KEPT = 200  # lines of its output


def main() -> int:
    options, record = parse_stage(__doc__)
    command = shlex.split(os.environ.get(VARIABLE, ""))
    if not command:
        return record.skip("no command was given (--beside)")
    show(command)
    if options.dry_run:
        record.save(command=command)
        return 0
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        record.save(failed=str(error))
        return 1
    lines = done.stdout.splitlines()
    print(*lines, sep="\n", flush=True)
    record.save(command=command, returncode=done.returncode, table=lines[-KEPT:])
    if done.returncode:
        record.save(failed=f"exit status {done.returncode}")
    return int(bool(done.returncode))


if __name__ == "__main__":
    sys.exit(main())
