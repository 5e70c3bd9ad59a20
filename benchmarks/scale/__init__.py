"""How planning and deciding grow with a deployment, up to 10,000 GPUs."""
