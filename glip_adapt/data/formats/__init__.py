"""Dataset formats, one module each; ``Format`` in ``documents.py`` says what is in them."""
