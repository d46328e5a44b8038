"""Test modules of this folder import what lies beside them: official.py and tiny.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
