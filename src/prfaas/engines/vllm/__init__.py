"""vLLM with PrfaaS: the out-of-tree KV connector, thin and pinned to a tested range of vLLM."""
