"""Which student: what fits a device before anything is trained, and the best of those that do."""
