"""`python -m sdpipe.doctor`: the same as `sdpipe doctor`, also where typer or tqdm is missing."""

import sys

from sdpipe.doctor import examine, works

if __name__ == "__main__":
    told = []
    for finding in examine(offline="--offline" in sys.argv):
        print(finding, flush=True)
        told.append(finding)
    sys.exit(not works(told))
