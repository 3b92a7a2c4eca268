"""The tests: a folder for each floor, `suites` for the programmes over all floors, `house` for the rules of the tree.

What tests share stands here; `children` are programs that tests start, `planted` the defects that guards must catch.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The checkout."""
