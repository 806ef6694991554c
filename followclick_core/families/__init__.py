"""The kinds of motion model that exist, one object for each: what sets it apart in sampling."""

from .family import AFFINITY, EMBEDDING, FAMILIES, FOLLOWCLICK, START_NOISE, Family, get_family

__all__ = ["AFFINITY", "EMBEDDING", "FAMILIES", "FOLLOWCLICK", "START_NOISE", "Family", "get_family"]
