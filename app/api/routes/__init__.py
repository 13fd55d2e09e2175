"""The operations, a file per group; each is documented by its own signature."""
