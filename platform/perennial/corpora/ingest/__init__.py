"""Turn a landed corpus into tokenised shards, held-out documents and a manifest."""
