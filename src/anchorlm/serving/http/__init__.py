"""The surface: middleware, the schema of what clients send, and OpenAI's forms of what they get."""
