"""How torch's threads wait for each other, asked for before torch is loaded: `simv0/__init__` imports this first."""

import os
import sys

# By default a waiting thread of GNU's OpenMP spins for milliseconds, on a core that another program may need: beside
# one busy process everything is several times slower. So many turns are some 10 microseconds: longer than the gap
# between two operations, shorter than anything the scheduler does. LLVM's OpenMP counts milliseconds (by default 200).
WAITING = {"GOMP_SPINCOUNT": "300", "KMP_BLOCKTIME": "1"}

if not {"OMP_WAIT_POLICY", *WAITING} & set(os.environ):
    os.environ.update(WAITING)
    WAITS_BRIEFLY = "torch" not in sys.modules
    """Whether that could still reach torch."""
else:
    WAITS_BRIEFLY = True
