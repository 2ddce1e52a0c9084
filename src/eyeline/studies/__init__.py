"""Several methods and seeds in one protocol, compared."""
