"""From a request to the tokens that the engine will compute."""
