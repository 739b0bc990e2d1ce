"""`python -m etude`, and so `torchrun -m etude train ...`."""

import sys

from etude.cli import main

sys.exit(main())
