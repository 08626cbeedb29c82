"""The HTML page that `inspect` writes: corpus, recipe plan, cleaning report and text samples."""
