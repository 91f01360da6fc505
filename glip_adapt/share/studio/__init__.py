"""A page to label a few pictures of a folder, adapt a detector to them, and look: see ``routes.py`` for its parts."""
