"""The client's side: OpenAI's requests, answers and errors."""
