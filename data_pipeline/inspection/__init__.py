"""The HTML page of `inspect`: corpus, plan, cleaning report and samples of text."""
