"""Batches on more than one machine: a shared store, a queue, and workers. Imported with PostgreSQL alone."""
