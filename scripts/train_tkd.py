"""Distil a student temporally; the same as ``fastv2v train-tkd``."""

import sys

from fastv2v.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-tkd", *sys.argv[1:]]))
