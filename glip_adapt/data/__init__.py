"""Pictures and boxes on disk → ``Split`` → (pixels, Target); never imports model/, they meet only in structures.py."""
