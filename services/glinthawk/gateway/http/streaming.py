"""Answers that come piece by piece: chunks in OpenAI's form, as server-sent events.

Pure: news of a request in, bytes out. A chunk carries what one choice has grown by.

    chat         role, "" | content ... | finish_reason     for each choice, interleaved
    completions  text ... | text, finish_reason
    both         [usage, no choices]   data: [DONE]

Logprobs of an echoed prompt are complete only when the request ends, so with echo and logprobs
each choice comes whole, in one piece.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from glinthawk.gateway.api.stream_options import StreamOptions
from glinthawk.gateway.bodies import encode_json_line
from glinthawk.gateway.detokenize import ChoiceResult, TextDelta
from glinthawk.gateway.engine import Completion
from glinthawk.gateway.http.calls import News
from glinthawk.gateway.http.errors import build_error
from glinthawk.gateway.logprobs import build_chat_logprobs, build_completion_logprobs, build_echo
from glinthawk.gateway.requests import Endpoint, ParsedRequest
from glinthawk.models.tokenizer import Tokenizer

_DONE = b"data: [DONE]\n\n"


class ChunkWriter:
    """Writes the events of one request. created: seconds since 1970."""

    def __init__(
        self,
        request: ParsedRequest,
        tokenizer: Tokenizer,
        options: StreamOptions,
        *,
        body_id: str,
        created: int,
    ) -> None:
        is_chat = request.endpoint is Endpoint.CHAT
        self._request = request
        self._tokenizer = tokenizer
        self._options = options
        self._build_chunks = self._build_chat if is_chat else self._build_completion
        self._head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{body_id}",
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": created,
            "model": request.model,
        }
        self._comes_whole = request.echo and request.num_logprobs is not None
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self.is_done = False

    def write(self, news: Iterable[News]) -> bytes:
        """Return the events for `news`; after the end of the request `is_done` is true."""
        return b"".join(event for one in news for event in self._write(one))

    def _write(self, news: News) -> Iterator[bytes]:
        if isinstance(news, TextDelta):
            if not self._comes_whole:
                yield from self._write_part(news)
            return
        self.is_done = True
        if news.error is not None:
            yield _encode(build_error(news.error)[1])
            return
        for result in news.choices:
            if result.index not in self._ended:
                yield from self._write_part(result)
        if self._options.include_usage:
            yield _encode({**self._head, "choices": [], "usage": self._count(news)})
        yield _DONE

    def _write_part(self, part: TextDelta | ChoiceResult) -> Iterator[bytes]:
        usage = {"usage": None} if self._options.include_usage else {}
        for choice in self._build_chunks(part):
            yield _encode({**self._head, "choices": [choice], **usage})
        self._begun.add(part.index)
        if part.finish_reason is not None:
            self._ended.add(part.index)

    def _build_chat(self, part: TextDelta | ChoiceResult) -> Iterator[dict[str, Any]]:
        def build(delta: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
            empty = {"index": part.index, "delta": delta, "logprobs": None, "finish_reason": None}
            return empty | fields

        if part.index not in self._begun:
            yield build({"role": "assistant", "content": ""}, **self._show_prompt(part))
        shown_fields = self._show_tokens(part)
        if part.logprobs:
            shown_fields["logprobs"] = build_chat_logprobs(part, self._tokenizer)
        if part.text or shown_fields:
            yield build({"content": part.text}, **shown_fields)
        if part.finish_reason is not None:
            yield build({}, finish_reason=str(part.finish_reason))

    def _build_completion(self, part: TextDelta | ChoiceResult) -> Iterator[dict[str, Any]]:
        text, echo = part.text, None
        shown_fields = self._show_tokens(part)
        if part.index not in self._begun:
            shown_fields |= self._show_prompt(part)
            if self._request.echo:
                prompt = self._request.prompts[part.prompt_index]
                echo = build_echo(prompt, self._tokenizer)
                text = echo.text + text
        if self._request.num_logprobs is not None and (part.logprobs or echo is not None):
            shown_fields["logprobs"] = build_completion_logprobs(
                part, echo, self._request.num_logprobs, self._tokenizer
            )
        if text or shown_fields or part.finish_reason is not None:
            reason = None if part.finish_reason is None else str(part.finish_reason)
            choice = {"index": part.index, "text": text, "logprobs": None, "finish_reason": reason}
            yield choice | shown_fields

    def _show_prompt(self, part: TextDelta | ChoiceResult) -> dict[str, Any]:
        if not self._request.return_token_ids:
            return {}
        return {"prompt_token_ids": list(self._request.prompts[part.prompt_index].tokens)}

    def _show_tokens(self, part: TextDelta | ChoiceResult) -> dict[str, Any]:
        if not self._request.return_token_ids or not part.tokens:
            return {}
        return {"token_ids": list(part.tokens)}

    def _count(self, completion: Completion) -> dict[str, int]:
        num_prompt_tokens = self._request.num_prompt_tokens
        num_completion_tokens = sum(len(choice.tokens) for choice in completion.choices)
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_completion_tokens,
            "total_tokens": num_prompt_tokens + num_completion_tokens,
        }


def _encode(document: Mapping[str, Any]) -> bytes:
    return b"data: " + encode_json_line(document) + b"\n"
