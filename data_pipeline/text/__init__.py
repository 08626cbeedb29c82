"""Raw text: the corpus, its readers, what of it is kept."""
