"""Real text for the quickstart: English, French and Spanish encyclopaedia leads.

Usage: python pipelines/fetch_quickstart.py FOLDER
Writes FOLDER/<corpus>.jsonl, and FOLDER/corpora.txt with the corpora's names in order.
"""

from __future__ import annotations

import sys
from pathlib import Path

from perennial.sources.sample_text import fetch_text

if __name__ == "__main__":
    fetch_text(Path(sys.argv[1]))
