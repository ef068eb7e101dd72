"""The random policies of the exporters' tests serve the runtimes' tests too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "exporters"))
