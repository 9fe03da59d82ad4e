"""Distil a student spatially; the same as ``fastv2v train-skd``."""

import sys

from fastv2v.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-skd", *sys.argv[1:]]))
