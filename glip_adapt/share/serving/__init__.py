"""Detection over HTTP: ``create_app`` of ``routes.py`` makes the application."""
