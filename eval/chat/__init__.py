"""Text generation, chat in the terminal, and an OpenAI-compatible server with a chat page."""
