"""One file for each other pack: how its nodes make a MODEL that samples clips. `variants.py` says what it defines."""
