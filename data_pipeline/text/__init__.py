"""Raw text: the corpus config, readers of its file formats, and the selection of documents."""
