"""PrfaaS: serve large language models across datacenters."""

__version__ = "0.1.0.dev0"
