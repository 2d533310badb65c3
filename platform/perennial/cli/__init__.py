"""The command line: one small file a verb, in folders by kind."""

from __future__ import annotations

import os

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""settings that silence libraries whose output would bury the progress line; the user's win"""


def main() -> None:
    """Run the `perennial` command."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from perennial.cli.app import app

    app()
