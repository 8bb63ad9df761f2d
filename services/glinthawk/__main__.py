"""Run the command line as `python -m glinthawk`."""

from glinthawk.cli import main

main()
