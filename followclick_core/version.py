"""The version of this package; pyproject.toml names the same one, and a test keeps the two equal."""

VERSION = "0.1.0"
