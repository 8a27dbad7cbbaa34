"""Scripts that measured what the pages claim; not part of the installed package, see README.md."""
