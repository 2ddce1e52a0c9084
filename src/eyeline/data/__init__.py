"""What data, which views of it, and in which batches."""
