"""The page that a browser measures with, and the one table of the packages from npm that it loads."""
