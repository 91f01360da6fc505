"""``python -m glip_adapt`` is the command line."""

from glip_adapt.cli import main

main()
