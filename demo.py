"""Start the demo: ``python demo.py``, then open the address it prints. Needs the extra ``demo``."""

import sys

from captioner.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
