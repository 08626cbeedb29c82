"""Loading an exported model, generating with it, and serving it."""
