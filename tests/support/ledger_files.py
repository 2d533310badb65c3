"""The ledger's objects, as somebody with access to the storage may change them."""

from __future__ import annotations

import hashlib
import json

from perennial.runs.ledger import HEAD
from perennial.store import Log, Store


def rechain(store: Store) -> None:
    """Give every entry the digest of the one before, and the head its own: a perfect forgery."""
    log, before = Log(store, "ledger"), ""
    for number in log.numbers():
        document = json.loads(store.read(log.key(number)))
        if "before" in document:
            document["before"] = before
            store.write(log.key(number), json.dumps(document, indent=1).encode())
        before = hashlib.sha256(store.read(log.key(number))).hexdigest()
    head = {"events": len(log.numbers()), "sha256": before}
    store.write(HEAD, json.dumps(head).encode())
