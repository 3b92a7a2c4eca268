"""Shows what it was started with, as one line of JSON, and ends with 7: `shown DESCRIPTOR ...`."""

from __future__ import annotations

import json
import os
import sys

if __name__ == "__main__":
    print(json.dumps([sys.argv, os.getcwd(), os.environ.get("SHOWN"), __name__, sys.stdin.read()]))  # noqa: T201
    print("error", file=sys.stderr)  # noqa: T201
    os.write(int(sys.argv[1]), b"through the pipe")
    sys.exit(7)
