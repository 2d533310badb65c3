"""Print the loss matrix of a run and verify its store; reads only, and starts no process.

    python examples/inspect_store.py STORE

STORE is a folder or an address such as s3://bucket/prefix. The run file is the one that the store
itself keeps.
"""

from __future__ import annotations

import sys

import perennial


def main(store: str) -> int:
    """Print what the store holds; return 1 when something in it does not agree."""
    run = perennial.open(store)
    status = run.read_status()
    print(f"{status.name} at {status.store}")
    print(status.matrix.to_csv())
    verification = run.verify()
    for finding in verification.findings:
        print(finding)
    return int(bool(verification.findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
