"""`python -m perennial.cli`."""

from perennial.cli import main

main()
