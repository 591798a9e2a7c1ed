"""The study file: its schema, how it is read, and the fingerprint of what it says."""
