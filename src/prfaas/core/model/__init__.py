"""What a model's KVCache looks like: KV groups, layouts, images."""
