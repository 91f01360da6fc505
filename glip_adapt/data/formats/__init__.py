"""Dataset formats, one module each: ``recognises(folder)`` and ``read(folder)``, which returns splits by name."""
