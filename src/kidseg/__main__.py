"""`python -m kidseg` is `kidseg`."""

from kidseg.cli import main

main()
