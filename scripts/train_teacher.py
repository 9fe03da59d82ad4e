"""Train a full-time teacher; the same as ``fastv2v train-teacher``."""

import sys

from fastv2v.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-teacher", *sys.argv[1:]]))
