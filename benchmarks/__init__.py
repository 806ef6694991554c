"""What is measured by hand; no part of the tests, of the pack or of the installed package."""
