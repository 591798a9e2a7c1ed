"""How similar two data sets' instructions are: sentence encoders, and the similarity of mean embeddings."""
