"""`python -m adcore`, which is how torchrun starts a command: `torchrun --nproc-per-node 8 -m adcore measure uniad`."""

import sys

from adcore.cli import main

if __name__ == "__main__":
    sys.exit(main())
