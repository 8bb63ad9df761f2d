"""The HTTP API: OpenAI's endpoints, over one engine and one store that are handed in."""
