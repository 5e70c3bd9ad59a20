"""A request's prompt in tokens: counted before it is routed, or after its answer when that cannot change the route."""

from __future__ import annotations

from contextlib import suppress

from prfaas.core.cache.hashing import TokenChain, chain_tokens, pack_tokens
from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.openai import ApiRequest
from prfaas.gateway.fleet import Instance, match_prefix
from prfaas.gateway.prompt.tokenize import NotCountable
from prfaas.gateway.service import Service
from prfaas.gateway.story import Story


class PromptCount:
    """Tokens of one request, and its blocks by block size. Empty until counted, and for ever if that cannot be done."""

    def __init__(self, service: Service, request: ApiRequest, story: Story) -> None:
        self._service = service
        self._request = request
        self._story = story
        self.token_ids: list[int] | None = None
        self.packed = b""
        self.chains: dict[int, TokenChain] = {}
        self.at_most = service.tokenizer.max_tokens(request)
        limit = service.deployment.served_model.max_model_tokens
        fits = self.at_most + (request.max_output_tokens or 1) <= limit
        below = self.at_most <= service.policy.threshold_tokens
        #: The prompt fits and stays below the threshold whatever its tokens are, so counting can wait.
        self.is_surely_short = request.obstacle is None and fits and below

    @property
    def num_tokens(self) -> int | None:
        """The prompt's tokens, or a bound good enough to route by; None if neither is known."""
        if self.token_ids is not None:
            return len(self.token_ids)
        return self.at_most if self.is_surely_short else None

    async def count(self) -> None:
        """Count. Raises ApiError if prompt and output do not fit the model's context."""
        await self._tokenize()
        if self.token_ids is not None:
            self._cut(self.token_ids)

    async def count_late(self) -> None:
        """Count after the answer, for the prefix record and the story only."""
        instance = self._service.fleet.by_name.get(self._story.decode_instance or "")
        if instance is None or self._story.ttft_s is None:
            return
        # A normalizer that expands may refute `at_most`: then the engine has had its say already.
        with suppress(ApiError):
            await self._tokenize()
        if self.token_ids is not None:
            self._cut(self.token_ids)
            reusable = match_prefix(instance, self.chains).reusable_prefix_tokens
            self._story.uncached_tokens = len(self.token_ids) - reusable
            self.ran_on(instance)

    def ran_on(self, instance: Instance) -> None:
        """The engine has computed the whole prompt."""
        chain = self.chains.get(instance.block_tokens or 0)
        if chain is not None:
            instance.record.ran_locally(chain)

    async def _tokenize(self) -> None:
        if self._request.obstacle is not None:
            return
        limit = self._service.deployment.served_model.max_model_tokens
        try:
            self.token_ids = await self._service.tokenizer.token_ids(self._request, limit)
        except NotCountable as unknown:
            self._request.obstacle = unknown.reason

    def _cut(self, token_ids: list[int]) -> None:
        self._story.prompt_tokens = len(token_ids)
        self.packed = pack_tokens(token_ids)
        seed, salt = self._service.deployment.transfer.hash.seed, self._request.cache_salt
        for size in {i.block_tokens for i in self._service.fleet.decoders if i.block_tokens}:
            self.chains[size] = chain_tokens(self.packed, size, seed, salt)
