"""Reading of raw text: the corpus config, readers of file formats, and selection of documents."""
