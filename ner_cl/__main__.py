"""Runs the `ner-cl` command as `python -m ner_cl`."""

import sys

from ner_cl.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
