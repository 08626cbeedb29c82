"""What the page of `inspect` says: corpus, plan, cleaning, samples."""
