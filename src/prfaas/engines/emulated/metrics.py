"""What an emulated engine counts: under vLLM's names where vLLM has the same, under ours what only it can know."""

from __future__ import annotations

from collections.abc import Iterator

from prfaas.engines.emulated.engine import EmulatedEngine


def metrics_text(engine: EmulatedEngine, model: str, num_tasks: int) -> str:
    """In Prometheus' text format. `num_tasks` are the process's."""
    labels = f'{{engine="0",model_name="{model}"}}'
    rows = _values(engine, num_tasks)
    return "".join(f"# TYPE {name} {kind}\n{name}{labels} {float(value)}\n" for name, kind, value in rows)


def _values(engine: EmulatedEngine, num_tasks: int) -> Iterator[tuple[str, str, float]]:
    yield "vllm:num_requests_running", "gauge", engine.num_running
    yield "vllm:num_requests_waiting", "gauge", engine.num_waiting
    yield "vllm:kv_cache_usage_perc", "gauge", engine.cache_usage
    yield "vllm:prefix_cache_queries_total", "counter", engine.num_prompt_tokens
    yield "vllm:prefix_cache_hits_total", "counter", engine.num_cached_tokens
    yield "vllm:prompt_tokens_total", "counter", engine.num_prompt_tokens
    yield "vllm:generation_tokens_total", "counter", engine.num_output_tokens
    yield "vllm:request_success_total", "counter", engine.num_answered
    yield "prfaas_emulated_tasks", "gauge", num_tasks
    yield "prfaas_emulated_landings_loaded_total", "counter", engine.num_loaded
    yield "prfaas_emulated_landings_not_loaded_total", "counter", engine.num_not_loaded
    yield "prfaas_emulated_images_shipped_total", "counter", engine.num_shipped
    yield "prfaas_emulated_wrong_parts_total", "counter", engine.num_wrong_parts
