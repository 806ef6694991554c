"""A package, so that fixtures of package scope, such as the open browser, end with the last test in here."""
