"""Records in, files out: the table, the figures and the page of a study."""
