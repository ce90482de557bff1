"""``python -m layerbounds_verify FILE [--input LAYERS] [--sample N] [--exact]``: 0 where all holds, 3 where not."""

from __future__ import annotations

import argparse
import sys

from layerbounds_verify.check import REFUSED, verify


def main() -> int:
    """Check a file and print what was found."""
    parser = argparse.ArgumentParser(prog="layerbounds_verify", description="Check a certificate of layerbounds.")
    parser.add_argument("file")
    parser.add_argument("--input", metavar="LAYERS", help="the layer file, where the certificate has only hashes of it")
    parser.add_argument("--sample", type=int, metavar="N", help="check so many intervals, evenly chosen")
    parser.add_argument("--exact", action="store_true", help="without rounding for few inputs, searches excepted")
    given = parser.parse_args()
    report = verify(given.file, given.input, sample=given.sample, exact=given.exact)
    print(report.text())
    return 0 if report else REFUSED


if __name__ == "__main__":
    sys.exit(main())
