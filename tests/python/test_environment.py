"""docs/environment.md names every variable that the sources read."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READS = re.compile(r"""(?:getenv\(|environ\.get\(|environ\[|(?:VARIABLE|SECONDS) = )["']([A-Z_]+)["']""")
OF_THE_SYSTEM = {"PYTHONPATH"}


def test_every_variable_that_is_read_is_documented():
    sources = [ROOT / "setup.py"]
    for folder, ending in (("csrc", "*.cpp"), ("python", "*.py"), ("benchmarks", "*.py"), ("tests", "*.py")):
        sources += [path for path in (ROOT / folder).rglob(ending) if path != Path(__file__)]
    read = {name for path in sources for name in READS.findall(path.read_text())} - OF_THE_SYSTEM
    assert {"FRAMEATTN_KERNELS", "FRAMEATTN_VERBOSE", "FRAMEATTN_CUDA", "FRAMEATTN_FUZZ_EXAMPLES", "MAX_JOBS"} <= read
    page = (ROOT / "docs" / "environment.md").read_text()
    assert {name for name in read if f"`{name}" not in page} == set()
