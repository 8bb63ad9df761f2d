"""How the next token is chosen: the parameters of a request, validated at the door."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """Parameters that the last stage needs to choose a token of one sequence.

    The order of application is vLLM's: logprobs are taken from the raw logits; then stop
    tokens are masked while fewer than `min_tokens` were generated; then repetition,
    frequency and presence penalties; then temperature; min_p; top_k; top_p; then
    Gumbel-max with noise keyed by (seed, choice, position, token id).

    temperature: 0 is greedy. top_k: None is off. top_p: 1 is off. min_p: 0 is off.
    num_logprobs: None for no logprobs, 0 for the chosen token's only.
    num_prompt_logprobs: the same, for the tokens of the prompt.
    stop_token_ids: every token that ends the sequence (the model's own included, unless
    ignored); masked while min_tokens is not reached.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    seed: int = 0
    choice: int = 0
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
